"""F5: damage to the newest checkpoint is detected and printed, and the one before it is loaded.

A bit is flipped, a file cut off or removed; ``latest`` files, in which DeepSpeed keeps the name of what it would load,
mislead. What tests/training/checkpoint/test_manager.py does forty times to one run is done here at full count, up to
loading.
"""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmldm_scale import config
from mmldm_scale.training.loop import Trainer
from mmldm_scale.training.resilience import signals
from mmldm_scale.training.resilience.signals import StopRequest
from tests.support import toy_trainable
from tests.support.faults import fault_trials
from tests.support.toy_runs import harm

BEFORE, LAST = 16, 32  # samples
LIMIT = 5.0  # seconds


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, alone) -> Iterator[Trainer]:
    """A trainer of the toy, whose run has two checkpoints."""
    run = tmp_path_factory.mktemp("damaged") / "run"
    steps = ("training.total_samples=32", "training.checkpoint_every=16", "training.preview_every=32")
    schema = config.load(toy_trainable.ToyTraining, [], [f"run={run}", *steps])
    run.mkdir()
    trainer = Trainer(toy_trainable.build_trainable(schema), schema.training, run, alone)
    trainer.run(StopRequest())
    yield trainer
    signals.restore_handlers()


def folder(trainer: Trainer, samples_seen: int) -> Path:
    return trainer.checkpoints.folder / f"step-{samples_seen:012d}"


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.engine.module.parameters()])


def mislead(checkpoints: Path, dice: random.Random) -> None:
    """Have DeepSpeed's hints name what is not the newest."""
    name = dice.choice([f"step-{BEFORE:012d}", f"step-{LAST + 16:012d}", f"step-{LAST:012d}.tmp", "engine", ""])
    for place in (checkpoints, checkpoints / f"step-{BEFORE:012d}", checkpoints / f"step-{LAST:012d}"):
        (place / "latest").write_text(name)


def trial(trainer: Trainer, expected: dict[int, torch.Tensor], aside: Path, capfd, number: int) -> str:
    """Damage the newest checkpoint, load what the trainer finds, and put all back."""
    dice = random.Random(5_000 + number)
    kind, hint = ("flip", "cut", "missing", "latest")[number % 4], number % 8 > 3
    checkpoints = trainer.checkpoints.folder
    try:
        if kind != "latest":
            harm(folder(trainer, LAST), kind, dice)
        if hint or kind == "latest":
            mislead(checkpoints, dice)
        capfd.readouterr()
        began = time.monotonic()
        found = trainer.checkpoints.newest()
        assert time.monotonic() - began < LIMIT
        said, good = capfd.readouterr().err, LAST if kind == "latest" else BEFORE
        assert found == folder(trainer, good)
        reason = f"{folder(trainer, LAST)}: skipped, "
        assert [line.startswith(reason) for line in said.splitlines()] == [True] * (good != LAST), said
        assert trainer.checkpoints.load(trainer.engines, found) == good
        assert torch.equal(weights(trainer), expected[good])
    finally:
        shutil.rmtree(checkpoints)
        shutil.copytree(aside, checkpoints)
    return f"{kind}{' with stale hints' if hint and kind != 'latest' else ''}"


@fault_trials.counts(full=1000, short=16)
def test_damage_is_detected_and_the_undamaged_checkpoint_is_loaded(count, trainer, tmp_path, capfd):
    aside, expected = tmp_path / "aside", {}
    shutil.copytree(trainer.checkpoints.folder, aside)
    for samples_seen in (BEFORE, LAST):
        trainer.checkpoints.load(trainer.engines, folder(trainer, samples_seen))
        expected[samples_seen] = weights(trainer)
    assert not torch.equal(*expected.values())
    fault_trials.run("F5 damaged checkpoints", count, lambda number: trial(trainer, expected, aside, capfd, number))
