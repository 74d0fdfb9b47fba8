"""The launcher of ``--processes``, with small programs as ranks: what they receive, how they end, what it returns."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmldm_scale.common.processes import identity

LAUNCH = """
import sys
from mmldm_scale.cluster import local_launcher
local_launcher.END_DEADLINE = 1.0
sys.exit(local_launcher.launch([sys.executable, "-c", sys.argv[1]], 2))
"""
# What each rank begins with. A line is written at once, so that those of two ranks do not mix, and no rank goes on, and
# may fail, before both are ready.
RANK = """
import os, signal, sys, time
from mmldm_scale.cluster import local_launcher
from mmldm_scale.common import processes
def say(*words):
    os.write(1, f"{' '.join(map(str, words))}\\n".encode())
def ready():
    processes.follow_launcher()
    say("ready", os.environ["RANK"], os.getpid())
    shared = int(os.environ[local_launcher.STORE])
    os.pwrite(shared, b".", int(os.environ["RANK"]))
    while os.pread(shared, 2, 0) != b"..":
        time.sleep(0.01)
"""
# A rank that notes the signals, and ends as a training does: with 75, some time after the first.
SAVING = f"""{RANK}
received = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: received.append(signal.Signals(number).name))
ready()
while not received:
    time.sleep(0.01)
time.sleep(SECONDS)
say("saved", os.environ["RANK"], *received)
sys.exit(75)
"""


def saving(seconds: float = 0.2) -> str:
    return SAVING.replace("SECONDS", str(seconds))


def ending(code: str) -> str:
    return f"{RANK}ready()\n{code}"


class Launched:
    """A launcher with two ranks that run the program ``rank``, in a process group of its own."""

    def __init__(self, rank: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, rank],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        lines = [self.process.stdout.readline().split() for _ in range(2)]
        self.ranks = {int(rank): int(pid) for _, rank, pid in lines}

    def signal(self, number: int, target: str) -> None:
        """Send a signal to the "launcher", to rank "1", or to "all"."""
        if target == "all":
            os.killpg(self.process.pid, number)
        else:
            os.kill(self.process.pid if target == "launcher" else self.ranks[int(target)], number)

    def end(self) -> tuple[int, str, str]:
        """Return the exit status, the output and the errors; no rank is left by then."""
        output, errors = self.process.communicate(timeout=60)
        assert [identity(pid) for pid in self.ranks.values()] == [{}, {}]
        return self.process.returncode, output, errors


@pytest.fixture
def launched() -> Iterator[Callable[[str], Launched]]:
    started: list[Launched] = []

    def launch(rank: str) -> Launched:
        started.append(Launched(rank))
        return started[-1]

    yield launch
    for one in started:
        for pid in (one.process.pid, *one.ranks.values()):
            if identity(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_stop_signal_reaches_each_rank_once_and_the_status_is_theirs(launched, number: signal.Signals) -> None:
    run = launched(saving())
    run.signal(number, "launcher")
    status, output, errors = run.end()
    assert (status, errors) == (75, "")
    assert sorted(output.splitlines()) == [f"saved {rank} {number.name}" for rank in (0, 1)]


def test_ranks_that_were_signalled_with_the_launcher_save_as_well(launched) -> None:
    run = launched(saving())
    run.signal(signal.SIGUSR1, "all")
    status, output, errors = run.end()
    assert (status, errors) == (75, "")
    assert [line.split()[2] for line in output.splitlines()] == ["SIGUSR1", "SIGUSR1"]


def test_saving_may_take_longer_than_failed_ranks_get(launched) -> None:
    run = launched(saving(seconds=2))
    run.signal(signal.SIGTERM, "launcher")
    status, output, errors = run.end()
    assert (status, output.count("saved"), errors) == (75, 2, "")


def test_ranks_survive_a_killed_launcher_and_save(launched) -> None:
    run = launched(saving())
    run.signal(signal.SIGKILL, "launcher")
    output, errors = run.process.communicate(timeout=60)
    assert (sorted(output.splitlines()), errors) == (["saved 0 SIGTERM", "saved 1 SIGTERM"], "")


def test_ctrl_c_interrupts_each_rank_once_and_a_second_one_kills(launched) -> None:
    run = launched(
        f"""{RANK}
try:
    ready()
    time.sleep(60)
except KeyboardInterrupt:
    say("interrupted")
    time.sleep(60)
"""
    )
    run.signal(signal.SIGINT, "all")
    for _ in range(2):
        assert run.process.stdout.readline() == "interrupted\n"
    while run.process.poll() is None:  # two signals may become one where the launcher has no time for the first
        run.signal(signal.SIGINT, "launcher")
        time.sleep(0.1)
    status, output, errors = run.end()
    # killed, or by a Ctrl-C that came when the launcher had reported that and was ending
    assert (status in (137, -signal.SIGINT), output) == (True, "")
    assert errors.startswith("mmldm: ended at once by a second Ctrl-C")


def test_a_killed_rank_ends_the_others_and_is_the_one_line(launched) -> None:
    run = launched(saving())
    run.signal(signal.SIGKILL, "1")
    status, _, errors = run.end()
    assert status == 137
    assert (
        errors == f"mmldm: rank 1 (pid {run.ranks[1]}) was ended by SIGKILL; if nobody sent it, the memory was full\n"
    )


def test_a_rank_that_does_not_end_with_the_failed_one_is_killed(launched) -> None:
    run = launched(
        ending("signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60 * int(os.environ['RANK']))\nsys.exit(1)")
    )
    status, _, errors = run.end()
    assert status == 1
    assert errors == f"mmldm: rank 0 (pid {run.ranks[0]}) failed with status 1\n"


@pytest.mark.parametrize("status", [0, 2, 70, 74, 75])
def test_what_a_rank_has_explained_is_not_repeated(launched, status: int) -> None:
    assert launched(ending(f"sys.exit({status})")).end() == (status, "", "")


def test_the_mistake_on_one_rank_is_the_only_line_although_the_others_lose_contact_with_it(launched) -> None:
    status, _, errors = launched(
        f"""{RANK}
from mmldm_scale import cli
from mmldm_scale.common.errors import LostContact, UserError
from mmldm_scale.runs import status
cli.OTHER_RANK_WAIT, cli.LOST_CONTACT_WAIT = 0.3, 60
def fail(args, queued_jobs):
    raise LostContact("closed") if os.environ["RANK"] == "0" else UserError("sample 70 cannot be read")
status.run = fail
ready()
sys.exit(cli.main(["status", "run"]))
"""
    ).end()
    assert (status, errors) == (2, "mmldm: sample 70 cannot be read\n")


def test_a_stop_signal_before_the_ranks_can_save_is_named(launched) -> None:
    run = launched(ending("time.sleep(60)"))
    run.signal(signal.SIGUSR1, "launcher")
    status, _, errors = run.end()
    assert status == 128 + signal.SIGUSR1
    assert errors == f"mmldm: rank 0 (pid {run.ranks[0]}) was ended by SIGUSR1\n"


def test_a_mistake_is_one_line_and_modules_of_the_current_folder_are_not_imported(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong module')")
    code = "from mmldm_scale.cluster import local_launcher; exit(local_launcher.run(2, ['train', 'no-such']))"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("mmldm: ")
    assert done.stderr.count("\n") == 1
