"""Fault trials run at their full count only when asked for (``-m soak``), and say at the end what they counted.

What they counted is kept then, and what is on file already is left out (:mod:`tests.support.faults.results`).
"""

import time
from collections.abc import Generator

import pytest

from tests.support.faults import fault_trials, results


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes hours, also where another selection is asked for by ``-m``."""
    full = [item for item in items if item.get_closest_marker("soak")]
    if "soak" in config.getoption("markexpr"):
        full = [item for item in full if results.passed(_name(item), item.callspec.params["count"])]
        config.stash[ON_FILE] = sorted(map(_name, full))
    config.hook.pytest_deselected(items=full)
    items[:] = [item for item in items if item not in full]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Keep what a full test counts, also where it fails."""
    before, began = len(fault_trials.REPORT), time.monotonic()
    try:
        return (yield)
    finally:
        if item.get_closest_marker("soak"):
            for counted in fault_trials.REPORT[before:]:
                results.keep(_name(item), counted, time.monotonic() - began)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """To have nothing left to do is no failure."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.stash.get(ON_FILE, []):
        session.exitstatus = pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if "soak" in config.getoption("markexpr"):
        terminalreporter.section("fault trials")
        for name in config.stash.get(ON_FILE, []):
            terminalreporter.line(f"{name}: has passed, see {results.FILE.relative_to(results.ROOT)}")
        for counted in fault_trials.REPORT:
            terminalreporter.line(str(counted))


def _name(item: pytest.Item) -> str:
    return item.nodeid.split("[")[0]


ON_FILE = pytest.StashKey[list[str]]()
