"""Checkpoints of older formats, and of formats that this version does not know."""

import json
import shutil
from pathlib import Path

import pytest

from mmldm_scale.common.errors import UserError
from mmldm_scale.training.checkpoint.manifest import MANIFEST, read_manifest, seal
from mmldm_scale.training.checkpoint.migrations import FORMAT, MIGRATIONS, UnsupportedFormat
from tests.support.datasets.latent_sets import write_latents
from tests.support.run_results import Finished, Forks

# A run of two processes, ZeRO-2, stopped at 16 samples by the last version that wrote format 2, and what that version
# logged when it resumed the run.
FORMAT_2 = Path(__file__).with_name("format_2")
SETTINGS = [
    "training.precision=fp32",
    "training.zero_stage=2",
    "model.depth=1",
    "model.width=16",
    "model.heads=2",
    "model.context_tokens=2",
    "model.context_width=4",
    "training.global_batch=8",
    "training.micro_batch=4",
    "training.workers=0",
    "training.log_every=8",
    "training.checkpoint_every=16",
    "training.preview_every=1600",
    "preview.samples=0",
    "posterior=draw",
    "training.learning_rate=1e-2",
    "training.spike_factor=1000",
    "training.total_samples=32",
    "shards=latents",
    "run=run",
]


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A copy of the run of format 2, beside its latents."""
    shutil.copytree(FORMAT_2, tmp_path / "run")
    write_latents(tmp_path / "latents")
    return tmp_path / "run"


def resume(forks: Forks, run: Path, processes: int, *overrides: str) -> Finished:
    command = ("command", str(run.parent), "mmldm", "train", "dit", *SETTINGS, *overrides)
    return Finished(run, *forks(processes, *command))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_of_format_2_resumes_as_the_version_that_wrote_it_did(
    forks: Forks, old_run: Path, processes: int
) -> None:
    finished = resume(forks, old_run, processes)
    assert finished.status == 0, finished.output
    expected = [json.loads(line) for line in (FORMAT_2 / "resumed.jsonl").read_text().splitlines()]
    for record, logged in zip(finished.log()[2:], expected, strict=True):
        assert {tag: record[tag] for tag in logged} == pytest.approx(logged, rel=1e-6)
    newest = read_manifest(finished.checkpoints()[-1])
    assert newest.format == json.loads((finished.checkpoints()[-1] / MANIFEST).read_text())["format"] == FORMAT
    skipping = json.loads((finished.checkpoints()[-1] / newest.states["step_skipping"]).read_text())
    assert len(skipping["losses"]) == 4  # two of them from the old checkpoint


def test_a_run_from_before_the_key_posterior_does_not_change_what_it_does(forks: Forks, old_run: Path) -> None:
    finished = resume(forks, old_run, 1, "posterior=mode")
    assert finished.status == UserError.status
    assert "the run was started with posterior=draw, not mode; set the same value" in finished.output


def test_an_old_manifest_reads_as_one_of_today() -> None:
    manifest = read_manifest(FORMAT_2 / "checkpoints/step-000000000016")
    assert (manifest.format, manifest.samples_seen) == (FORMAT, 16)
    assert manifest.states == {"step_skipping": "health.json"}
    assert sorted(MIGRATIONS) == list(range(min(MIGRATIONS), FORMAT))  # a way from each to the next


def write_format(checkpoint: Path, number: object) -> None:
    """Make ``checkpoint`` one of the format ``number``, otherwise whole."""
    manifest = json.loads((checkpoint / MANIFEST).read_text()) | {"format": number}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    seal(checkpoint)


@pytest.mark.parametrize("number", [1, FORMAT + 1, "3", None])
def test_another_format_is_not_read(old_run: Path, number: object) -> None:
    checkpoint = old_run / "checkpoints/step-000000000016"
    write_format(checkpoint, number)
    reason = f"was written in checkpoint format {number!r}; this version reads formats 2 to {FORMAT}"
    with pytest.raises(UnsupportedFormat, match=reason):
        read_manifest(checkpoint)


def test_another_format_is_neither_damage_nor_skipped(forks: Forks, old_run: Path) -> None:
    checkpoint = old_run / "checkpoints/step-000000000016"
    write_format(checkpoint, FORMAT + 1)
    finished = resume(forks, old_run, 1)
    assert finished.status == UserError.status
    assert f"checkpoints/step-000000000016: was written in checkpoint format {FORMAT + 1};" in finished.output
    assert "damaged" not in finished.output
    assert checkpoint.is_dir()
