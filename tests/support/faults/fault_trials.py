"""Fault trials: how many there are, how they are counted, and what the count proves.

    @trials.counts(full=1000, short=10)
    def test_cut_tars_are_noticed(count, tmp_path):
        trials.run("cut tars are noticed", count, lambda number: ...)  # raises if trial `number` goes wrong

In the ordinary suite such a test has its short count, or is left out where other tests are its short form; ``make
soak`` (``pytest -m soak``) runs the full one, times the environment variable SOAK_SHARE, and keeps what it counted
(:mod:`tests.support.faults.results`). Every trial is a function of its number, so that one that failed can be run
again.
"""

import math
import os
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from data_tools.launching.progress import Progress

NORMAL = 1.959964  # of 95 %, two-sided
SHOWN = 10  # failures that are described


@dataclass(frozen=True)
class Counted:
    """What became of the trials of a test; as text the line for the end of the session."""

    name: str
    passed: int
    of: int
    kinds: dict[str, int]  # of those that passed, the most frequent first

    def __str__(self) -> str:
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.kinds.items())
        return f"{self.name}: {bound(self.passed, self.of)} ({kinds or 'nothing else'})"


REPORT: list[Counted] = []  # of the session so far


def wilson(successes: int, count: int) -> float:
    """Return the lower end of Wilson's 95 % interval for the rate behind ``successes`` of ``count`` trials."""
    rate, square = successes / count, NORMAL**2
    spread = NORMAL * math.sqrt(rate * (1 - rate) / count + square / (4 * count**2))
    return (rate + square / (2 * count) - spread) / (1 + square / count)


def counts(full: int, short: int = 0) -> pytest.MarkDecorator:
    """Parametrize a test by ``count``: marked "soak" ``full`` times SOAK_SHARE, at least 1; and ``short``, if any."""
    scaled = max(1, round(full * float(os.environ.get("SOAK_SHARE", "1"))))
    forms = [pytest.param(scaled, id="full", marks=pytest.mark.soak)]
    return pytest.mark.parametrize("count", [pytest.param(short, id="short"), *forms] if short else forms)


def run(name: str, count: int, trial: Callable[[int], object]) -> None:
    """Call ``trial(0)`` … ``trial(count - 1)``, count what they return, report it and fail if one of them raised."""
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    with Progress(count, name, "trials") as bar:
        for number in range(count):
            try:
                outcomes[str(trial(number))] += 1
            except Exception:  # counted first, raised below
                failures.append(f"trial {number}: {traceback.format_exc(limit=-4)}")
            bar.update()
    report(name, outcomes, failures)


def one_line(error: Exception, names: str = "") -> str:
    """Return what ``error`` says, which has to be one line with ``names`` in it."""
    text = str(error)
    assert "\n" not in text, text
    assert names in text, text
    return text


def report(name: str, outcomes: Counter[str], failures: list[str]) -> None:
    """Add the counts of one test to the session's report; fail if there are ``failures``."""
    count = outcomes.total() + len(failures)
    REPORT.append(Counted(name, outcomes.total(), count, dict(outcomes.most_common())))
    assert not failures, "\n".join([str(REPORT[-1]), *failures[:SHOWN]])


def bound(successes: int, count: int) -> str:
    """Say what ``successes`` of ``count`` trials prove: "200 of 200: at least 98.1 % at 95 %"."""
    return f"{successes:,} of {count:,}: at least {lower_percent(successes, count):.1f} % at 95 %"


def lower_percent(successes: int, count: int) -> float:
    """Return :func:`wilson` in percent, rounded down to tenths."""
    return math.floor(1000 * wilson(successes, count)) / 10
