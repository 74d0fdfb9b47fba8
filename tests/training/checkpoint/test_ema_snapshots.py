"""Snapshots of the averages: taken at their interval, never removed, and left out if the disk is full."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmldm_scale.common import atomic_files
from mmldm_scale.training.checkpoint import ema_snapshots
from mmldm_scale.training.engine.ema import AveragingProfile
from mmldm_scale.training.loop import Trainer
from mmldm_scale.training.resilience.signals import StopRequest
from tests.support import toy_trainable


@pytest.fixture
def train(tmp_path: Path, alone, restored_handlers) -> Callable[[int], Path]:
    """Train the toy in this process until it has seen so many samples, with a snapshot every 32; return the run."""

    def run(total: int) -> Path:
        schema = toy_trainable.ToyTraining(run=str(tmp_path))
        schema.training.total_samples, schema.training.ema_snapshot_every = total, 32
        schema.training.checkpoint_every, schema.training.keep_checkpoints = 16, 1
        Trainer(toy_trainable.build_trainable(schema), schema.training, tmp_path, alone).run(StopRequest())
        return tmp_path

    return run


def test_snapshots_are_taken_in_time_and_at_the_end_of_each_average(train) -> None:
    run = train(80)
    found = ema_snapshots.find(run, until=80)
    assert found.keys() == {AveragingProfile(end, length) for end in (32, 64, 80) for length in (0.1, 0.2)}
    assert {path.name for path in (run / "ema").iterdir()} == {path.name for path in found.values()}
    assert ema_snapshots.find(run, until=79).keys() == {profile for profile in found if profile.samples_seen < 80}
    inside = load_file(run / "checkpoints/step-000000000080/weights/model.safetensors")
    del inside["scale"]  # a buffer
    first, second = (load_file(found[AveragingProfile(80, length)]) for length in (0.1, 0.2))
    assert first.keys() == second.keys() == inside.keys()
    for name, value in inside.items():
        assert torch.equal(first[name], value.half())
        assert not torch.equal(second[name], first[name])


def test_resumed_run_keeps_earlier_snapshots(train) -> None:
    before = {path: path.stat().st_mtime_ns for path in (train(64) / "ema").iterdir()}
    after = {path: path.stat().st_mtime_ns for path in (train(128) / "ema").iterdir()}
    assert before.items() < after.items()
    assert len(after) == 2 * len(before) == 8


def test_full_disk_leaves_a_snapshot_out_and_the_run_continues(train, monkeypatch, capfd) -> None:
    write = atomic_files._write

    def full_at_64(stream, data: bytes) -> None:
        if "step-000000000064-0.1." in stream.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(stream, data)

    monkeypatch.setattr(atomic_files, "_write", full_at_64)
    run = train(96)
    assert "snapshot left out: " in capfd.readouterr().err
    missing = AveragingProfile(64, 0.1)
    whole = {AveragingProfile(end, length) for end in (32, 64, 96) for length in (0.1, 0.2)}
    assert ema_snapshots.find(run, until=96).keys() == whole - {missing}
    assert len(list((run / "ema").iterdir())) == 5
