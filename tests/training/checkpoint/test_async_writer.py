"""Checkpoints written in the background: they hold the state at saving, and the run waits where it must."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmldm_scale import config
from mmldm_scale.common.errors import Outage
from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.loop import Trainer
from mmldm_scale.training.resilience.signals import StopRequest
from tests.support import toy_trainable
from tests.support.run_results import Finished, Forks, assert_same_checkpoint

pytestmark = pytest.mark.usefixtures("restored_handlers")


class Watched:
    """The toy's data; it says how far it was read."""

    def __init__(self, dataset: toy_trainable.ToyData, on_read: Callable[[int], None]) -> None:
        self.dataset, self.on_read, self.highest = dataset, on_read, -1
        self.moved = threading.Condition()

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        self.on_read(position)
        with self.moved:
            self.highest = max(self.highest, position)
            self.moved.notify_all()
        return self.dataset[position]

    def wait_for(self, position: int) -> None:
        with self.moved:
            assert self.moved.wait_for(lambda: self.highest >= position, timeout=20), f"{position} is never read"


class Held:
    """A trainer of the toy in this process, whose first checkpoint is not written before ``until`` was read."""

    def __init__(self, run: Path, world: World, until: int, *overrides: str, on_read=lambda position: None) -> None:
        schema = config.load(toy_trainable.ToyTraining, [], [f"run={run}", "training.log_every=160", *overrides])
        torch.manual_seed(schema.training.seed)
        trainable = toy_trainable.build_trainable(schema)
        self.data = trainable.dataset = Watched(trainable.dataset, on_read)
        self.write_weights, trainable.write_weights = trainable.write_weights, self.write_late
        self.until, self.highest_while_writing = until, -1
        run.mkdir(exist_ok=True)
        self.trainer = Trainer(trainable, schema.training, run, world)

    def write_late(self, folder: Path, state: dict[str, Tensor]) -> None:
        self.data.wait_for(self.until)
        if self.highest_while_writing < 0:
            time.sleep(0.3)  # for the loop to go further, if it does
            self.highest_while_writing = self.data.highest
        self.write_weights(folder, state)

    def run(self) -> bool:
        return self.trainer.run(StopRequest())


def names(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in Finished(run, 0, "").checkpoints()]


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (2, "bf16"), (3, "bf16")]
)
def test_a_checkpoint_holds_the_state_at_saving(tmp_path, alone, stage: int, precision: str) -> None:
    """Compared with a run that ends there, which does not train on while it is written."""
    options = [f"training.zero_stage={stage}", f"training.precision={precision}", "training.keep_checkpoints=9"]
    if stage == 3:
        options.append("training.deepspeed.zero_optimization.stage3_param_persistence_threshold=0")
    Held(tmp_path / "on", alone, 64 + 47, "training.total_samples=128", *options).run()
    Held(tmp_path / "ended", alone, 0, "training.total_samples=64", *options).run()
    on, ended = (tmp_path / name / "checkpoints/step-000000000064" for name in ("on", "ended"))
    assert_same_checkpoint(on, ended)
    assert (on / "states/step_skipping.json").read_text() == (ended / "states/step_skipping.json").read_text()


def test_a_second_checkpoint_waits_for_the_first(tmp_path, alone) -> None:
    held = Held(tmp_path / "run", alone, 127)
    held.run()
    assert held.highest_while_writing == 127
    assert names(tmp_path / "run") == [64, 128, 160]


def test_a_run_asked_to_stop_ends_when_both_checkpoints_are_complete(tmp_path, alone) -> None:
    def ask(position: int) -> None:
        if position == 70:
            os.kill(os.getpid(), signal.SIGUSR1)

    assert Held(tmp_path / "run", alone, 79, on_read=ask).run()
    assert names(tmp_path / "run") == [64, 80]


def test_a_run_that_goes_back_waits_for_the_checkpoint_that_it_goes_back_to(tmp_path, alone, capfd) -> None:
    bad = ["fault_at=[64,80,96]", "training.skip_limit=3", "training.total_samples=128"]
    Held(tmp_path / "run", alone, 111, *bad).run()
    assert "going back to step-000000000064" in capfd.readouterr().err
    assert names(tmp_path / "run") == [64, 128]


def test_checkpoints_at_keep_every_are_not_removed(tmp_path, alone) -> None:
    options = ["training.checkpoint_every=16", "training.keep_checkpoints=2", "training.keep_every=48"]
    Held(tmp_path / "run", alone, 0, *options).run()
    assert names(tmp_path / "run") == [48, 96, 144, 160]
    more = Held(tmp_path / "run", alone, 0, *options, "training.total_samples=192")
    assert more.trainer.samples_seen == 160
    more.run()
    assert names(tmp_path / "run") == [48, 96, 144, 176, 192]


OPTIONS = ("training.checkpoint_every=32", "training.preview_every=16000000", "training.keep_checkpoints=9")


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run whose disk does not fail."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finished = Finished(run, *forks(2, "train", f"run={run}", *OPTIONS))
    assert finished.status == 0, finished.output
    return finished


@pytest.mark.parametrize(("rank", "sync"), [(0, 22), (1, 3)])
def test_an_error_on_one_rank_ends_all_ranks_with_its_message(tmp_path, forks, rank: int, sync: int) -> None:
    run = tmp_path / "run"
    endless = [f"run={run}", "training.total_samples=16000000", *OPTIONS]
    status, said = forks(2, "train_on_failing_disk", "fail", rank, sync, *endless)
    assert status == Outage.status, said
    assert "Traceback" not in said
    line = f"{run}/checkpoints/step-000000000064.tmp: cannot be written: Input/output error"
    assert said.count(line) == 2, said  # one of each rank
    status, said = forks(2, "train", f"run={run}", *OPTIONS)
    assert status == 0, said
    assert "resuming from 32 of 160" in said
    assert names(run) == [32, 64, 96, 128, 160]


@pytest.mark.parametrize(
    ("rank", "sync", "stands"), [(0, 19, 32), (1, 3, 32), (0, 28, 32), (0, 29, 32), (0, 35, 32), (0, 36, 64)]
)
def test_a_kill_while_writing_leaves_the_older_checkpoint(tmp_path, forks, whole, rank, sync, stands) -> None:
    """Of rank 0's 18 syncs a checkpoint 10 are of files, 7 of manifest and folders, 1 follows the renaming."""
    run = tmp_path / "run"
    status, said = forks(2, "train_on_failing_disk", "kill", rank, sync, f"run={run}", *OPTIONS)
    assert status == signal.SIGKILL, said
    status, said = forks(2, "train", f"run={run}", *OPTIONS)
    assert status == 0, said
    assert f"resuming from {stands} of 160" in said
    assert names(run) == [32, 64, 96, 128, 160]
    assert_same_checkpoint(Finished(run, 0, "").checkpoints()[-1], whole.checkpoints()[-1])
