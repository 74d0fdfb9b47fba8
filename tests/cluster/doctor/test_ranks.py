"""Two ranks that look at one another, forked from this process: one may have another code or another time."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from mmldm_scale import cli
from mmldm_scale.cluster.doctor import examination, ranks, software
from mmldm_scale.cluster.doctor.findings import Check, Finding, examine


def _place(rank: int, port: int) -> None:
    place = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ["SLURMD_NODENAME"] = f"n{rank + 1}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _rank(rank: int, port: int, break_it: Callable[[int], None], results: multiprocessing.Queue) -> None:
    _place(rank, port)
    break_it(rank)
    here = ranks.join(30)
    looks = (ranks.agreement, ranks.clocks, lambda here: ranks.all_reduce(here, 4))
    results.put((rank, [f for look in looks for f in examine(Check("ranks", lambda look=look: look(here), 30))]))
    ranks.leave()


def findings(break_it: Callable[[int], None]) -> list[Finding]:
    """Return what the first of two ranks finds, after ``break_it(rank)`` on each."""
    context = multiprocessing.get_context("fork")
    results, port = context.Queue(), _free_port()
    processes = [context.Process(target=_rank, args=(rank, port, break_it, results)) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(30)
    return found[0]


def nothing(rank: int) -> None:
    pass


def other_code(rank: int) -> None:
    if rank == 1:
        software.code = lambda: "0123456789ab"


def other_time(rank: int) -> None:
    right = ranks._now
    ranks._now = lambda: right() + 40 * rank


def wrong_sum(rank: int) -> None:
    right = ranks.dist.all_reduce

    def all_reduce(tensor, **how):
        right(tensor, **how)
        tensor[7] += rank

    ranks.dist.all_reduce = all_reduce


def test_ranks_of_one_kind_agree() -> None:
    found = findings(nothing)
    assert [(f.level, f.subject) for f in found] == [("ok", s) for s in ("agreement", "clocks", "all-reduce")]
    assert "2 ranks on 2 node(s) run the same code" in found[0].text
    assert "GB/s bus bandwidth, gloo, 4 MB over 2 ranks" in found[2].text


@pytest.mark.parametrize(
    ("break_it", "subject", "text"),
    [
        (other_code, "agreement", "n2 has code 0123456789ab, n1 has "),
        (other_time, "clocks", "n2 is 40.0 s ahead of n1"),
        (wrong_sum, "all-reduce", "a wrong sum (gloo)"),
    ],
)
def test_what_one_rank_has_otherwise_is_trouble(break_it, subject, text) -> None:
    (trouble,) = (f for f in findings(break_it) if f.level != "ok")
    assert (trouble.level, trouble.subject) == ("trouble", subject)
    assert trouble.text.startswith(text)


def _examined(rank: int, port: int, results: multiprocessing.Queue) -> None:
    _place(rank, port)
    if rank == 1:
        ranks.agreement = lambda here: os._exit(3)
    lines: list[str] = []
    examination.print = lambda text, **_: lines.append(text)
    status = examination.run(cli.parser().parse_args(["doctor", "--quick"]))
    results.put((status, "\n".join(lines)))


def test_what_is_known_is_said_though_a_rank_dies() -> None:
    context = multiprocessing.get_context("fork")
    results, port = context.Queue(), _free_port()
    processes = [context.Process(target=_examined, args=(rank, port, results)) for rank in (0, 1)]
    for process in processes:
        process.start()
    status, said = results.get(timeout=60)
    for process in processes:
        process.join(30)
    assert status == 1
    assert "ok       versions       n1: Python" in said
    assert "trouble  ranks          n1: lost while they were looked at" in said


def test_the_fingerprint_of_the_code_follows_its_content(tmp_path: Path, monkeypatch) -> None:
    before = software.code()
    (tmp_path / "one.py").write_text("1")
    monkeypatch.setattr(software, "PACKAGE", tmp_path)
    software.code.cache_clear()
    first = software.code()
    (tmp_path / "one.py").write_text("2")
    software.code.cache_clear()
    assert len({before, first, software.code()}) == 3
    software.code.cache_clear()
