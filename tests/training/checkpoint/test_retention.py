"""Which checkpoints a run keeps: the newest whole ones and the one just written, and whatever is not the run's own."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmldm_scale.common.errors import UserError
from mmldm_scale.training import run_folder
from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.loop import Trainer
from mmldm_scale.training.resilience.signals import StopRequest, restore_handlers
from tests.support import toy_trainable

STEP = 16  # samples between two checkpoints


def schema_of(run: Path, total: int, keep: int, keep_every: int = 0) -> toy_trainable.ToyTraining:
    schema = toy_trainable.ToyTraining(run=str(run))
    schema.adversarial.weight = 0.0
    training = schema.training
    training.total_samples, training.checkpoint_every, training.preview_every = total, STEP, total
    training.zero_stage, training.keep_checkpoints, training.keep_every = 1, keep, keep_every
    return schema


def train(run: Path, world: World, total: int, keep: int, keep_every: int = 0) -> None:
    """Train the toy in ``run`` to ``total`` samples, in this process."""
    schema = schema_of(run, total, keep, keep_every)
    run.mkdir(exist_ok=True)
    run_folder.begin(run, schema, world)
    Trainer(toy_trainable.build_trainable(schema), schema.training, run, world).run(StopRequest())
    restore_handlers()


@pytest.fixture(scope="module")
def five(tmp_path_factory, alone: World) -> Path:
    """A run with checkpoints at 16, 32, 48, 64 and 80 samples."""
    run = tmp_path_factory.mktemp("five") / "run"
    train(run, alone, 5 * STEP, keep=9)
    return run


@pytest.fixture
def run(five: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(five, tmp_path / "run")
    yield tmp_path / "run"
    restore_handlers()


def damage(run: Path, step: int) -> None:
    """Flip a bit in the weights of the checkpoint after ``step`` steps."""
    file = run / f"checkpoints/step-{step * STEP:012d}/weights/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def steps(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) // STEP for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("damaged", "keep", "left"),
    [
        ((), 2, [5, 6]),
        ((5,), 1, [5]),  # step 5 is trained again and replaces the damaged one
        ((5,), 2, [4, 5]),
        ((4, 5), 2, [3, 4]),
        ((2, 4), 3, [3, 4, 5, 6]),  # a damaged one among those kept takes no place, and stays until it is older
        ((1, 2, 3, 4), 2, [5, 6]),
        ((2, 3, 4), 3, [1, 2, 3, 4, 5, 6]),  # fewer whole ones than may be kept
    ],
)
def test_whole_checkpoints_are_counted(run: Path, alone: World, damaged, keep: int, left: list[int]) -> None:
    for step in damaged:
        damage(run, step)
    newest_whole = max({1, 2, 3, 4, 5} - set(damaged))
    train(run, alone, (newest_whole + 1) * STEP, keep)
    assert [step for step in steps(run) if step <= newest_whole + 1] == left
    assert [step for step in steps(run) if step > newest_whole + 1] == [n for n in damaged if n > newest_whole + 1]


def test_what_has_another_name_is_nobodys_business(run: Path, alone: World) -> None:
    others = ["step-000000000016-best1", "step-000000000016.bak1", "step-9", "step-000000000048 (copy)", "notes"]
    for name in others:
        shutil.copytree(run / "checkpoints/step-000000000016", run / "checkpoints" / name)
    train(run, alone, 6 * STEP, keep=1)
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {*others, "step-000000000096"}


def test_links_are_removed_and_not_followed_and_nothing_stands_in_the_way(run: Path, alone: World) -> None:
    kept = run.with_name("kept")
    (run / "checkpoints/step-000000000064").rename(kept)
    (run / "checkpoints/step-000000000064").symlink_to(kept)
    (run / "checkpoints/step-000000000096").symlink_to(run.with_name("not_mounted"))
    train(run, alone, 6 * STEP, keep=1)
    assert steps(run) == [6]
    assert (kept / "manifest.json").is_file()


def test_those_between_two_intervals_are_the_first_to_go(run: Path, alone: World) -> None:
    """Of 16 to 80 samples, those at 16, 48 and 80 are then as if the clock had saved them."""
    schema = schema_of(run, 6 * STEP, 3)
    schema.training.checkpoint_every = 2 * STEP
    Trainer(toy_trainable.build_trainable(schema), schema.training, run, alone).run(StopRequest())
    assert steps(run) == [2, 4, 6]


def test_multiples_of_keep_every_stay(run: Path, alone: World) -> None:
    train(run, alone, 6 * STEP, keep=1, keep_every=2 * STEP)
    assert steps(run) == [2, 4, 6]


def test_a_run_whose_checkpoints_are_gone_starts_again_only_with_restart(run: Path, alone: World) -> None:
    log = (run / "log.jsonl").read_bytes()
    disk = run.with_name("disk")
    (run / "checkpoints").rename(disk)
    (run / "checkpoints").symlink_to(run.with_name("not_mounted"))
    gone = "checkpoints: step-000000000080 and all other checkpoints are gone; restore them or mount their disk"
    with pytest.raises(UserError, match=gone):
        train(run, alone, 6 * STEP, keep=1)
    assert (run / "log.jsonl").read_bytes() == log
    (run / "checkpoints").unlink()
    with pytest.raises(UserError, match=gone):
        run_folder.check(run, schema_of(run, 6 * STEP, 1))
    restarting = schema_of(run, 6 * STEP, 1)
    restarting.restart = True
    run_folder.check(run, restarting)
    run_folder.begin(run, restarting, alone)
    (run / "newest_checkpoint").unlink()  # as in a run of an older version; five steps are too many without one
    with pytest.raises(UserError, match="the log reaches 80 samples, but all checkpoints are gone"):
        run_folder.check(run, schema_of(run, 6 * STEP, 1))
    disk.rename(run / "checkpoints")
    train(run, alone, 6 * STEP, keep=1)
    assert steps(run) == [6]


def test_a_run_that_never_saved_starts_again(tmp_path: Path, alone: World) -> None:
    schema = schema_of(tmp_path, STEP, 1)
    run_folder.begin(tmp_path, schema, alone)
    (tmp_path / "log.jsonl").write_text('{"samples_seen": 16, "time": 1.0, "loss": 1.0}\n')  # killed before it saved
    run_folder.begin(tmp_path, schema, alone)
