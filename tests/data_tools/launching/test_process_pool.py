"""Whatever a process does, its item gets an answer, the others do not notice, and nothing is left behind."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_tools.launching import process_pool
from mmldm_scale.common.errors import UserError
from mmldm_scale.media.clip import MediaError
from tests.support.faults.faulty_functions import Odd, act, once, slow

SECONDS = 1.5  # time limit where one is meant to be hit


def check(results: list, expected: list) -> None:
    """Results are as expected, where a str expected is a MediaError's reason."""
    assert [r.reason if isinstance(r, MediaError) else r for r in results] == expected


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_the_items(workers):
    assert list(process_pool.map(slow, [0.3, 0.0, 0.2, 0.1], workers, 60)) == [0.3, 0.0, 0.2, 0.1]
    assert list(process_pool.map(act, range(50), workers, 60)) == [2 * i for i in range(50)]
    assert list(process_pool.map(act, [], workers, 60)) == []


def test_processes_work_at_once_and_are_not_this_one():
    pids = set(process_pool.map(functools.partial(_slow_pid, 0.2), range(8), 2, 60))
    assert len(pids) == 2
    assert os.getpid() not in pids


def _slow_pid(seconds: float, _: int) -> int:
    time.sleep(seconds)
    return os.getpid()


@pytest.mark.parametrize(("fault", "cause"), [("segfault", "SIGSEGV"), ("kill", "SIGKILL"), ("exit", "exit status 3")])
def test_a_process_that_dies_costs_its_item_alone(fault, cause):
    results = list(process_pool.map(act, [1, fault, 2, 3, fault, 4], 2, 60))
    check(results, [2, "decoder_crashed", 4, 6, "decoder_crashed", 8])
    assert cause in results[1].detail


@pytest.mark.parametrize("fault", ["hang", "stop", "stop while answering"])
def test_a_process_that_hangs_costs_its_item_alone(fault):
    results = list(process_pool.map(act, [1, fault, 2, 3, 4, 5], 2, SECONDS))
    check(results, [2, "decoder_hung", 4, 6, 8, 10])
    assert results[1].detail == f"no answer within {SECONDS:g} s"


def test_an_item_whose_process_is_killed_from_outside_is_tried_again(tmp_path):
    markers = [str(tmp_path / str(i)) for i in range(3)]
    assert list(process_pool.map(once, markers, 2, 60)) == ["done"] * 3


def test_items_are_pulled_no_further_ahead_than_said():
    pulled = []

    def items():
        for i in range(100):
            pulled.append(i)
            yield i

    results = process_pool.map(act, items(), 2, 60)
    assert pulled == []
    for done in range(1, 20):
        next(results)
        assert len(pulled) <= done + 4
    results.close()
    assert len(pulled) < 30


def test_an_exception_is_raised_here_with_its_traceback():
    with pytest.raises(UserError, match="the disk is full") as caught:
        list(process_pool.map(act, [1, "raise", 2], 2, 60))
    assert "in _raise\n" in "".join(caught.value.__notes__)
    with pytest.raises(RuntimeError, match="Odd: odd 1 2"):
        list(process_pool.map(act, ["odd"], 1, 60))
    with pytest.raises(Odd):
        list(process_pool.map(act, ["odd"], 0, 60))


def test_what_cannot_be_pickled_is_an_error_and_no_hang():
    with pytest.raises(Exception, match="pickle"):
        list(process_pool.map(act, ["function"], 2, 60))
    with pytest.raises(Exception, match="pickle"):
        list(process_pool.map(act, [lambda: None], 2, 60))
    with pytest.raises(Exception, match="pickle"):
        list(process_pool.map(lambda item: item, [1], 2, 60))


def test_a_process_that_cannot_start_is_an_error_and_no_dropped_item(tmp_path, monkeypatch, capfd):
    (tmp_path / "only_here.py").write_text(
        "import os\nif os.getpid() != int(os.environ['HERE']):\n    raise ImportError('broken')\n"
        "def function(item):\n    return item\n"
    )
    monkeypatch.setenv("HERE", str(os.getpid()))
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    with pytest.raises(RuntimeError, match="exit status 1"):
        list(process_pool.map(only_here.function, [1, 2, 3], 2, 60))
    del sys.modules["only_here"]


def test_large_results_arrive_whole():
    results = list(process_pool.map(act, ["large"] * 6, 2, 60))
    assert [len(result) for result in results] == [30_000_000] * 6


def test_many_small_items_all_arrive_in_order():
    assert list(process_pool.map(act, range(10_000), 2, 60)) == [2 * number for number in range(10_000)]


def test_ctrl_c_is_not_for_the_processes():
    check(list(process_pool.map(act, ["interrupt", 1], 1, 60)), [None, 2])


def test_giving_up_leaves_no_process(tmp_path):
    results = process_pool.map(act, ["pid", "hang", "stop", "hang"], 2, 600)
    pid = next(results)
    time.sleep(0.5)
    results.close()
    assert not _alive(pid)


SCRIPT = """
import sys
from data_tools.launching import process_pool
from tests.support.faults.faulty_functions import act
try:
    for result in process_pool.map(act, ["pid", "pid", "pid"] + sys.argv[1:], 3, 600):
        print(result, flush=True)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def _start(*items: str) -> tuple[subprocess.Popen, set[int]]:
    """Start a program that calls three processes with ``items``; return it and the processes."""
    command = [sys.executable, "-c", SCRIPT, *items]
    root = Path(__file__).parents[3]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, start_new_session=True)
    pids = {int(program.stdout.readline()) for _ in range(3)}
    time.sleep(0.5)
    return program, pids


def test_ctrl_c_ends_at_once_though_decoders_hang():
    program, pids = _start("hang", "stop", "hang")
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does: to all of them
    assert program.communicate(timeout=20)[0] == "stopped\n"
    assert program.returncode == 0
    assert not any(map(_alive, pids))
    _wait_until_gone(program.pid)


def test_killed_for_good_it_leaves_nothing_behind_though_decoders_hang():
    program, _ = _start("hang", "stop", "hang")
    program.kill()
    program.wait()
    program.stdout.close()
    _wait_until_gone(program.pid)


def _wait_until_gone(session: int) -> None:
    end = time.monotonic() + 15
    while left := _members(session):
        assert time.monotonic() < end, left
        time.sleep(0.1)


def _members(session: int) -> list[str]:
    """Return the command lines of the processes of ``session`` that still run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((entry / "cmdline").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
