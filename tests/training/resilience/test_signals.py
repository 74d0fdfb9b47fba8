"""Signals to real trainings: what is saved, what is printed, how the launcher ends. The soak has all combinations."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmldm_scale.common.sockets import listening
from mmldm_scale.training.resilience.signals import EXIT_STOPPED, StopRequest
from tests.support.datasets.latent_sets import write_latents
from tests.support.signalled_run import SignalledRun

Start = Callable[..., SignalledRun]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    latents, started = write_latents(tmp_path / "set"), []

    def start(launcher: str, **settings: int) -> SignalledRun:
        started.append(SignalledRun(launcher, latents, tmp_path / "run", **settings))
        return started[-1]

    yield start
    for run in started:
        run.kill()


def test_a_signal_to_the_launcher_before_the_first_checkpoint_saves(start: Start, tmp_path: Path, monkeypatch) -> None:
    """The run listens on the loopback interface only, and leaves nothing in TMPDIR."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setitem(os.environ, "TMPDIR", str(temporary))
    run = start("--processes")
    addresses = {address for pid in (run.process.pid, *run.ranks) for address, _ in listening(pid)}
    assert addresses == {"127.0.0.1"}
    run.signal(signal.SIGUSR1, "launcher")
    assert run.wait() == EXIT_STOPPED
    assert run.stopped_by() == "SIGUSR1"
    assert list(temporary.iterdir()) == []


def test_ranks_save_although_torchrun_died_of_the_signal(start: Start) -> None:
    run = start("torchrun")
    run.signal(signal.SIGUSR1, "launcher")
    assert run.wait() == -signal.SIGUSR1
    assert run.stopped_by() == "SIGTERM"


def test_a_killed_rank_is_the_last_line_and_the_only_one(start: Start) -> None:
    run = start("--processes", every=8)
    run.signal(signal.SIGKILL, "rank")
    assert run.wait() == 128 + signal.SIGKILL
    said = run.output
    assert said.splitlines()[-1].startswith(f"mmldm: rank 1 (pid {run.ranks[1]}) was ended by SIGKILL")
    assert "Traceback" not in said
    assert "lost contact" not in said


def test_ctrl_c_ends_all_at_once_without_saving(start: Start) -> None:
    run = start("--processes")
    run.signal(signal.SIGINT, "all")
    assert run.wait() == 128 + signal.SIGINT
    assert run.output.splitlines()[-1] == "mmldm: interrupted; a training resumes from its last checkpoint"
    assert "Traceback" not in run.output
    assert not list(run.run.glob("checkpoints/*"))


def test_the_first_signal_is_the_reason(restored_handlers) -> None:
    stop_request = StopRequest()
    assert not stop_request
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert stop_request.signal == signal.SIGUSR1
