"""Checks of two ranks, forked from this process, of which one may have other code or another time."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from mmldm_scale import cli
from mmldm_scale.doctor import examination, ports, ranks, software
from mmldm_scale.doctor.findings import Check, Finding, run_check
from tests.support.run_results import Forks


def print_findings(break_it: str) -> int:
    """Call the function of this name, then run the checks; rank 0 prints its findings as JSON."""
    rank = _place()
    globals()[break_it](rank)
    here = ranks.join(30)
    checks = (ranks.agreement, ranks.clocks, lambda here: ranks.all_reduce(here, 4), lambda here: ports.open_ports())
    found = [f for check in checks for f in run_check(Check("ranks", lambda check=check: check(here), 30))]
    ranks.leave(here)
    if rank == 0:
        print(json.dumps([asdict(finding) for finding in found]), flush=True)
    return 0


def _place() -> int:
    rank = int(os.environ["RANK"])
    os.environ["SLURMD_NODENAME"] = f"n{rank + 1}"
    return rank


def findings(forks: Forks, break_it: Callable[[int], None]) -> list[Finding]:
    """Return the findings of rank 0 of two, after ``break_it(rank)`` on each."""
    status, said = forks(2, "call", f"{__name__}:print_findings", break_it.__name__)
    assert status == 0, said
    return [Finding(**finding) for finding in json.loads(said.splitlines()[-1])]


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


def test_ranks_of_one_kind_agree(forks) -> None:
    found = findings(forks, nothing)
    assert [(f.level, f.subject) for f in found] == [("ok", s) for s in ("agreement", "clocks", "all-reduce", "ports")]
    assert "2 ranks on 2 node(s) run the same code" in found[0].text
    assert "GB/s bus bandwidth, gloo, 4 MB over 2 ranks" in found[2].text
    assert found[3].text == "open on the loopback interface only"


@pytest.mark.parametrize(
    ("break_it", "subject", "text"),
    [
        (other_code, "agreement", "n2 has code 0123456789ab, n1 has "),
        (other_time, "clocks", "n2 is 40.0 s ahead of n1"),
        (wrong_sum, "all-reduce", "wrong sum (gloo)"),
    ],
)
def test_a_rank_that_differs_is_an_error(forks, break_it, subject, text) -> None:
    (error,) = (f for f in findings(forks, break_it) if f.level != "ok")
    assert (error.level, error.subject) == ("error", subject)
    assert error.text.startswith(text)


@pytest.mark.parametrize(
    ("addresses", "level", "text"),
    [
        ({}, "ok", "none is open"),
        ({"127.0.0.1": {7}, "10.0.0.11": {8, 9}}, "ok", "open on 10.0.0.11, without authentication"),
        ({"127.0.0.1": {7}, "::": {8}}, "warning", "port 8 can be reached on all interfaces"),
    ],
)
def test_what_others_can_reach_is_named(addresses: dict[str, set[int]], level: str, text: str) -> None:
    (finding,) = ports.check_addresses(addresses)
    assert (finding.level, finding.subject) == (level, "ports")
    assert finding.text.startswith(text)


def doctor() -> int:
    """Run the doctor as one of two ranks, of which the second dies."""
    if _place() == 1:
        ranks.agreement = lambda here: os._exit(0)
    return examination.run(cli.parser().parse_args(["doctor", "--quick"]))


def test_findings_are_printed_although_a_rank_dies(forks) -> None:
    status, said = forks(2, "call", f"{__name__}:doctor")
    assert status == 1
    assert "ok       versions       n1: Python" in said
    assert "error    ranks          n1: a rank was lost during the checks" in said


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
