from collections import Counter

import pytest

from tests.support.faults import fault_trials


@pytest.mark.parametrize(
    ("successes", "count", "lower"),  # Newcombe 1998, table I; Brown, Cai and DasGupta 2001; z²-forms by hand
    [(81, 263, 0.2553), (15, 148, 0.0624), (0, 20, 0.0), (29, 29, 0.8830), (200, 200, 0.98115), (1000, 1000, 0.99617)],
)
def test_the_lower_bound_is_wilsons(successes, count, lower):
    assert fault_trials.wilson(successes, count) == pytest.approx(lower, abs=1e-4)


def test_the_bound_is_never_rounded_up():
    assert fault_trials.bound(200, 200) == "200 of 200: at least 98.1 % at 95 %"
    assert fault_trials.bound(1000, 1000) == "1,000 of 1,000: at least 99.6 % at 95 %"


def test_failures_are_counted_to_the_end_and_then_raised(monkeypatch):
    monkeypatch.setattr(fault_trials, "REPORT", [])

    def trial(number):
        assert number % 4, f"number {number}"
        return "odd" if number % 2 else "even"

    with pytest.raises(AssertionError, match="trial 0: (.|\n)*number 0(.|\n)*trial 4: (.|\n)*number 4"):
        fault_trials.run("numbers", 8, trial)
    assert [*map(str, fault_trials.REPORT)] == ["numbers: 6 of 8: at least 40.9 % at 95 % (4 odd, 2 even)"]


def test_a_report_without_failures_passes(monkeypatch):
    monkeypatch.setattr(fault_trials, "REPORT", [])
    fault_trials.report("name", Counter(refused=3), [])
    assert [*map(str, fault_trials.REPORT)] == ["name: 3 of 3: at least 43.8 % at 95 % (3 refused)"]
