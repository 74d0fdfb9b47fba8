"""Signals to real trainings: what is saved, what is printed, how the launcher ends. The soak has all combinations."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmldm_scale.common.sockets import listening
from mmldm_scale.training.resilience.signals import EXIT_INTERRUPTED, EXIT_STOPPED, StopRequest
from tests.support.datasets.latent_sets import write_latents
from tests.support.signalled_run import SMALL, SignalledRun

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


def test_ctrl_c_in_the_terminal_saves_once(start: Start) -> None:
    """Each rank receives it from the terminal and once more from the launcher."""
    run = start("--processes")
    run.signal(signal.SIGINT, "all")
    assert run.wait() == EXIT_STOPPED
    assert run.stopped_by() == "Ctrl-C"
    assert run.output.count("mmldm: Ctrl-C: saving and stopping at the end of the next step") == 1
    last = run.output.splitlines()[-1]
    assert last.startswith("stopped: ")
    assert last.endswith("/weights; the same command resumes it")
    assert "Traceback" not in run.output


def test_ctrl_c_before_the_first_step_ends_at_once_and_says_that_nothing_is_saved(tmp_path: Path, forks) -> None:
    latents, run = write_latents(tmp_path / "set"), tmp_path / "run"
    how = (0, signal.SIGINT, f"{run}/leases/run", "command", str(tmp_path))
    status, said = forks(1, "signalled", *how, "mmldm", "train", "dit", *SMALL, f"shards={latents}", f"run={run}")
    assert status == EXIT_INTERRUPTED
    assert said == f"mmldm: interrupted before the first step ended; {run}: nothing is saved yet\n"


SECOND_CTRL_C = """
import os, signal
from pathlib import Path
from mmldm_scale.training.resilience.signals import StopRequest
stop_request = StopRequest()
stop_request.watch_ctrl_c(Path("run"))
os.kill(os.getpid(), signal.SIGINT)
print(stop_request.name, flush=True)
os.kill(os.getpid(), signal.SIGINT)
print("no more", flush=True)
"""


@pytest.mark.parametrize("launcher", ["", "MMLDM_STORE", "TORCHELASTIC_RUN_ID"])
def test_a_second_ctrl_c_ends_at_once_unless_the_launcher_has_handed_on_the_first(
    tmp_path: Path, launcher: str
) -> None:
    status = 0 if launcher else EXIT_INTERRUPTED
    (tmp_path / "run/checkpoints/step-000000000064").mkdir(parents=True)
    (tmp_path / "run/checkpoints/step-000000000128.tmp").mkdir()
    environment = os.environ | ({launcher: "1"} if launcher else {})
    program = [sys.executable, "-c", SECOND_CTRL_C]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (status, "Ctrl-C\n" + "no more\n" * (status == 0))
    ending = "mmldm: ended at once by a second Ctrl-C; run: saved up to 64 samples\n"
    assert done.stderr.endswith(ending) == (status != 0)


def test_another_rank_that_alone_is_interrupted_says_so(tmp_path: Path) -> None:
    environment = os.environ | {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    program = [sys.executable, "-c", SECOND_CTRL_C]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == EXIT_INTERRUPTED
    assert done.stderr == "mmldm: rank 1 was ended at once by a second Ctrl-C; run: nothing is saved yet\n"


def test_the_first_signal_is_the_reason(restored_handlers) -> None:
    stop_request = StopRequest()
    assert not stop_request
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert stop_request.signal == signal.SIGUSR1
