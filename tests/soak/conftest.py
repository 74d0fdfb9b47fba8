"""Fault trials run at their full count only when asked for (``-m soak``), and say at the end what they counted."""

import pytest

from tests.soak import trials


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes hours, also where another selection is asked for by ``-m``."""
    if "soak" not in config.getoption("markexpr"):
        full = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=full)
        items[:] = [item for item in items if item not in full]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if "soak" in config.getoption("markexpr"):
        terminalreporter.section("fault trials")
        for line in trials.REPORT:
            terminalreporter.line(line)
