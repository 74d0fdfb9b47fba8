import json
from pathlib import Path

from benchmarks import overhead

MODEL = {"depth": 1, "width": 16, "heads": 2, "context_tokens": 2, "context_width": 4}


def measure(file: str) -> int:
    """Write what is found in turns of two steps to ``file``."""
    overhead.TURN = 2
    overhead.keep_freed_memory()
    Path(file).write_text(json.dumps(overhead.measure(1, MODEL)))
    return 0


def test_the_trainer_and_the_bare_loops_take_turns(forks, tmp_path):
    status, said = forks(1, "call", f"{__name__}:measure", str(tmp_path / "found.json"))
    assert status == 0, said
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["turns"] == 1
    for name in ("seconds_per_step", "computing_seconds_per_step"):
        assert [*found[name]] == ["trainer", "bare loop", "bare loop without averages"]
        assert min(found[name].values()) > 0
    assert found["trainer_is_times"].keys() == {"bare loop", "bare loop without averages"}
