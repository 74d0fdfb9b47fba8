import contextlib
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from mmldm_scale.common import leases as module
from mmldm_scale.common.atomic_files import WholeFile, write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases


def test_one_holder_at_a_time_and_nothing_left(tmp_path):
    with Leases(tmp_path / "set") as one, Leases(tmp_path / "set") as other:
        assert one.take("a")
        assert not other.take("a")
        assert other.take("b")
        assert (one.holds("a"), one.holds("b"), other.holds("b")) == (True, False, True)
        one.release("a")
        assert other.take("a")
    assert not (tmp_path / "set").exists()


def test_folders_that_leases_made_go_with_them_if_they_are_still_empty(tmp_path):
    with Leases(tmp_path / "data/set/clips") as leases:
        assert leases.take("part")
    assert not list(tmp_path.iterdir())
    with Leases(tmp_path / "data/set/clips") as leases:
        assert leases.take("part")
        (tmp_path / "data/set/notes").touch()
    assert [path.name for path in (tmp_path / "data/set").iterdir()] == ["notes"]


def test_a_folder_that_cannot_be_one_is_told(tmp_path):
    (tmp_path / "file").touch()
    for place, says in (
        (tmp_path / "file", "must be a folder, not a file"),
        (Path("/proc/x"), "no folder can be made"),
    ):
        with Leases(place) as leases, pytest.raises(UserError, match=f"^{place}: {says}"):
            leases.take("a")


def test_files_of_a_part_may_be_gone_if_another_makes_it(tmp_path):
    with Leases(tmp_path) as leases:
        leases.take("a")
        with pytest.raises(FileNotFoundError), leases.finishing("a"):
            (tmp_path / "aside").rename(tmp_path / "a")
        (tmp_path / "leases/a").unlink()  # taken for dead
        with leases.finishing("a"):
            (tmp_path / "aside").rename(tmp_path / "a")


def test_a_file_of_several_writers_is_written_by_one_at_a_time(tmp_path, monkeypatch):
    """Leftovers are removed; one who lost the lease, and so the temporary file, leaves the writing to the other."""
    monkeypatch.setattr(module, "POLL_INTERVAL", 0.01)
    file, order = tmp_path / "page.html", []
    (tmp_path / "page.html.0a.tmp").touch()
    (tmp_path / "page.html2.0a.tmp").touch()

    def write_second():
        with Leases(tmp_path) as leases, leases.writing(file):
            order.append("second")
            write_whole(file, b"second")

    other = threading.Thread(target=write_second)
    with Leases(tmp_path) as leases:
        with leases.writing(file):
            assert [found.name for found in tmp_path.glob("*.tmp")] == ["page.html2.0a.tmp"]
            other.start()
            other.join(0.1)
            order.append("first")
        other.join()
        with leases.writing(file), WholeFile(file) as late:
            late.write(b"first")
            (tmp_path / "leases/page.html").unlink()  # taken for dead
            write_second()
            late.commit()
    assert (order, file.read_bytes()) == (["first", "second", "second"], b"second")


def test_an_exception_gives_everything_back(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), Leases(tmp_path) as leases:
        leases.take("a")
        leases.take("b")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["_make_folder", "_write_holder", "_create"])
def test_a_signal_cannot_leave_a_lease_half_taken(tmp_path, monkeypatch, step):
    original = getattr(Leases, step)

    def interrupted(*arguments):
        result = original(*arguments)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # this thread raises KeyboardInterrupt if it is the main one
        return result

    monkeypatch.setattr(Leases, step, interrupted)
    with pytest.raises(KeyboardInterrupt), Leases(tmp_path) as leases:
        leases.take("a")
    assert not list(tmp_path.rglob("*"))


def test_of_many_threads_one_wins_each_time(tmp_path):
    wins, start = [], threading.Barrier(8)

    def rush(leases):
        for number in range(30):
            start.wait()
            if leases.take(f"n{number}"):
                wins.append(number)

    with contextlib.ExitStack() as stack:
        holders = [stack.enter_context(Leases(tmp_path)) for _ in range(8)]
        threads = [threading.Thread(target=rush, args=(leases,)) for leases in holders]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert sorted(wins) == list(range(30))


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_holder_s_lease_is_free_at_once(tmp_path, reaped):
    taken = multiprocessing.Event()

    def hold():
        with Leases(tmp_path) as leases:
            leases.take("a")
            taken.set()
            time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=hold)
    process.start()
    assert taken.wait(20)
    with Leases(tmp_path) as leases:
        assert not leases.take("a")
        os.kill(process.pid, signal.SIGKILL)
        if reaped:
            process.join()
        else:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the process table
        assert leases.take("a")
    process.join()


def elsewhere(folder, name, **changes):
    """Make the lease ``name`` of a process of another machine."""
    with Leases(folder) as leases:
        leases.take(name)
        holder = json.loads((folder / "leases" / name).read_text())
    (folder / "leases").mkdir()
    (folder / "leases" / name).write_text(json.dumps({**holder, "host": "far-away", **changes}))
    return folder / "leases" / name


def test_a_holder_elsewhere_lives_while_it_touches_its_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEASE_TIMEOUT", 0.3)
    path = elsewhere(tmp_path, "a")
    with Leases(tmp_path) as leases:
        for beat in range(10):
            os.utime(path, (beat, beat))  # its clock is half a century behind: only that it goes on counts
            assert not leases.take("a")
            time.sleep(0.1)
        time.sleep(0.3)
        assert leases.take("a")


def test_a_process_that_was_frozen_notices_that_it_lost_its_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEASE_TIMEOUT", 0.1)
    with Leases(tmp_path) as frozen, Leases(tmp_path) as other:
        frozen.take("a")
        path = tmp_path / "leases" / "a"
        path.write_text(json.dumps({**json.loads(path.read_text()), "host": "far-away"}))
        assert not other.take("a")
        time.sleep(0.2)
        assert other.take("a")
        assert not frozen.holds("a")
        frozen.release("a")
        assert other.holds("a")


def test_a_held_lease_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RENEWAL_INTERVAL", 0.05)
    with Leases(tmp_path) as leases:
        leases.take("a")
        os.utime(tmp_path / "leases" / "a", (1, 1))
        deadline = time.monotonic() + 10
        while (tmp_path / "leases" / "a").stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / "leases" / "a").stat().st_mtime > 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "1/../1"}', '{"pid": 1}'])
def test_a_lease_that_is_incomplete_or_damaged_expires(tmp_path, monkeypatch, content):
    monkeypatch.setattr(module, "LEASE_TIMEOUT", 0.1)
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / "a").write_text(content)
    with Leases(tmp_path) as leases:
        assert not leases.take("a")
        time.sleep(0.2)
        assert leases.take("a")


def test_a_reused_process_id_is_not_the_holder(tmp_path):
    """As after a crash, when the id has gone to another program by now."""
    elsewhere(tmp_path, "a", host=socket.gethostname(), started=1)
    with Leases(tmp_path) as leases:
        assert leases.take("a")


def test_a_rival_is_named_and_lives_for_sure_once_it_touched_its_lease_again(tmp_path):
    path = elsewhere(tmp_path, "a", job="17")
    with Leases(tmp_path) as leases:
        assert not leases.take("a")
        holder, lives = leases.rival("a")
        assert (holder["host"], holder["job"], lives) == ("far-away", "17", False)
        os.utime(path, (5, 5))
        assert not leases.take("a")
        assert leases.rival("a")[1]


def test_a_rival_on_the_same_machine_lives_for_sure(tmp_path):
    with Leases(tmp_path, job="3") as one, Leases(tmp_path) as other:
        one.take("a")
        assert not other.take("a")
        holder, lives = other.rival("a")
        assert (holder["pid"], holder["job"], lives) == (os.getpid(), "3", True)


def test_leases_are_cleared_though_another_process_has_removed_their_folder(tmp_path):
    with Leases(tmp_path) as one:
        with Leases(tmp_path) as other:
            other.take("a")
        assert not (tmp_path / "leases").exists()
        one.clear()
