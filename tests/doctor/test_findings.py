"""How checks are run and put together: a time for each, none hides another, and many ranks' findings are few lines."""

import time

from mmldm_scale.doctor.findings import Check, Finding, examine, report, worst

FINE, FREE = Finding("ok", "disk", "5 GiB free"), Finding("ok", "disk", "6 GiB free")
FULL = Finding("trouble", "disk", "0 GiB free", "make room")


def test_a_check_that_hangs_is_trouble_and_keeps_what_it_found_before() -> None:
    def look():
        yield FINE
        time.sleep(5)

    found = examine(Check("disk", look, seconds=0.2))
    assert found == [FINE, Finding("trouble", "disk", "no answer within 0.2 s")]


def test_a_check_that_fails_is_trouble() -> None:
    def look():
        raise OSError(5, "Input/output error")
        yield FINE

    (found,) = examine(Check("disk", look))
    assert (found.level, found.subject) == ("trouble", "disk")
    assert found.text.startswith("OSError: [Errno 5] Input/output error (")


def test_what_all_ranks_find_is_one_line() -> None:
    assert report([[FINE], [FINE]], ["n1", "n2"]) == ["ok       disk           5 GiB free"]
    assert report([[FINE], [FREE]], ["n1", "n2"]) == ["ok       disk           5 GiB free"]


def test_several_things_of_one_kind_are_a_line_each() -> None:
    one, other = (Finding("ok", "shards", f"{name}: 9 samples") for name in "ab")
    assert report([[one, other], [one, other]], ["n1", "n2"]) == [one.line(), other.line()]
    slow = Finding("warning", "shards", "b: slow")
    assert report([[one, slow], [one, other]], ["n1", "n2"]) == [one.line(), slow.line("n1")]


def test_what_some_find_names_them() -> None:
    by_rank = [[FINE], [FULL], [FULL]]
    assert report(by_rank, ["n1", "n2", "n2"]) == [
        "ok       disk           n1: 5 GiB free",
        "trouble  disk           n2: 0 GiB free; make room",
    ]
    assert worst(by_rank) == "trouble"
    many = report([[FINE], *[[FULL]] * 9], [f"n{i}" for i in range(10)])
    assert "n1, n2, n3, n4 and 5 more: 0 GiB free" in many[1]
