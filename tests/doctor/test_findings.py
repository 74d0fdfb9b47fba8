"""How checks are run, each with a time limit, and how the findings of many ranks are merged."""

import time

from mmldm_scale.doctor.findings import Check, Finding, report, run_check, worst_level

FINE, FREE = Finding("ok", "disk", "5 GiB free"), Finding("ok", "disk", "6 GiB free")
FULL = Finding("error", "disk", "0 GiB free", "make room")


def test_a_check_that_hangs_is_an_error_after_its_earlier_findings() -> None:
    def find():
        yield FINE
        time.sleep(5)

    findings = run_check(Check("disk", find, seconds=0.2))
    assert findings == [FINE, Finding("error", "disk", "no answer within 0.2 s")]


def test_a_check_that_fails_is_an_error() -> None:
    def find():
        raise OSError(5, "Input/output error")
        yield FINE

    (finding,) = run_check(Check("disk", find))
    assert (finding.level, finding.subject) == ("error", "disk")
    assert finding.text.startswith("OSError: [Errno 5] Input/output error (")


def test_equal_findings_of_all_ranks_are_one_line() -> None:
    assert report([[FINE], [FINE]], ["n1", "n2"]) == ["ok       disk           5 GiB free"]
    assert report([[FINE], [FREE]], ["n1", "n2"]) == ["ok       disk           5 GiB free"]


def test_several_findings_of_a_subject_are_a_line_each() -> None:
    first, second = (Finding("ok", "shards", f"{name}: 9 samples") for name in "ab")
    assert report([[first, second], [first, second]], ["n1", "n2"]) == [first.line(), second.line()]
    slow = Finding("warning", "shards", "b: slow")
    assert report([[first, slow], [first, second]], ["n1", "n2"]) == [first.line(), slow.line("n1")]


def test_findings_of_some_ranks_name_their_nodes() -> None:
    by_rank = [[FINE], [FULL], [FULL]]
    assert report(by_rank, ["n1", "n2", "n2"]) == [
        "ok       disk           n1: 5 GiB free",
        "error    disk           n2: 0 GiB free; make room",
    ]
    assert worst_level(by_rank) == "error"
    many = report([[FINE], *[[FULL]] * 9], [f"n{i}" for i in range(10)])
    assert "n1, n2, n3, n4 and 5 more: 0 GiB free" in many[1]
