"""What holds for all tests: how they are spread over processes (`pytest -n 2`), and that programs hear Ctrl-C."""

import signal

import pytest


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # so in a shell's background jobs, and inherited by programs
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file together, for its fixtures, and all that needs SLURM, for there is one of it."""
    for item in items:
        together = "slurm" if item.get_closest_marker("slurm") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(together))
