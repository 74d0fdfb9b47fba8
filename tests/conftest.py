"""What holds for all tests: how they are spread over processes (`pytest -n 2`), and that programs hear Ctrl-C."""

import signal
from collections.abc import Iterator

import pytest


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # so in a shell's background jobs, and inherited by programs
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file together, for its fixtures, and all that needs SLURM, for there is one of it."""
    for item in items:
        together = "slurm" if item.get_closest_marker("slurm") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(together))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute with one thread.

    Models as small as the tests' lose by more, very much so where other tests run beside, and bytes are compared, which
    sums in another order might change.
    """
    import torch  # most tests of data preparation run without

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
