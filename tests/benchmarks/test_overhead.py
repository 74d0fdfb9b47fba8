import json
import subprocess
import sys

from tests.training.harness import ENVIRONMENT

PROGRAM = """
import json
from benchmarks import overhead
overhead.TURN = 2
overhead.keep_freed_memory()
sizes = {"depth": 1, "width": 16, "heads": 2, "context_tokens": 2, "context_width": 4}
print(json.dumps(overhead.measure(1, sizes)))
"""


def test_the_trainer_and_the_bare_loops_take_turns():
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["turns"] == 1
    for name in ("seconds_per_step", "computing_seconds_per_step"):
        assert [*found[name]] == ["trainer", "bare loop", "bare loop without averages"]
        assert min(found[name].values()) > 0
    assert found["trainer_is_times"].keys() == {"bare loop", "bare loop without averages"}
