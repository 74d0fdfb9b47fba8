"""What holds for all tests: how they are spread over processes (`pytest -n 3`), and that programs hear Ctrl-C."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from mmldm_scale.training.engine import distributed
    from tests.support.run_results import Finished, Forks


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # so in a shell's background jobs, and inherited by programs
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Together(LoadScopeScheduling):
    """Keeps the tests of a file together, for its fixtures, and all that need SLURM, for there is one of it.

    (pytest-xdist's own groups are lost on pytest 9.2.)
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "slurm" if file.startswith("tests/slurm/") else file


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which may be switched off
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Together:
    config.option.loadscopereorder = False  # the order is that of the tests, not the files with most tests first
    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: were it left for the end, one process would wait for the other."""
    items.sort(key=lambda item: [not item.nodeid.startswith(folder) for folder in LONGEST_FIRST])


LONGEST_FIRST = (
    "tests/slurm/",
    "tests/docs/",
    "tests/evaluation/",
    "tests/trainables/",
    "tests/planning/",
    "tests/training/",
)


@pytest.fixture(autouse=True)
def _plain_linear_layers() -> Iterator[None]:
    """Take back what an engine with ZeRO-3 in a test's process does to all linear layers, of later tests, too."""
    yield
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.nn.functional.linear = torch._C._nn.linear


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


@pytest.fixture(scope="session")
def alone() -> Iterator["distributed.World"]:
    """This process as a world of one."""
    from mmldm_scale.training.engine import distributed

    yield distributed.start(timeout=20.0)
    distributed.stop()


@pytest.fixture(scope="session")
def forks() -> Iterator["Forks"]:
    """Runs commands, and the toy of tests/support, in processes of their own."""
    from tests.support.run_results import Forks

    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture
def train(forks: "Forks", tmp_path: Path) -> Callable[..., "Finished"]:
    """Train the toy in ``tmp_path / name`` to its end, in processes of its own."""

    from tests.support.run_results import Finished

    def run(*overrides: str, name: str = "run", processes: int = 2) -> "Finished":
        return Finished(tmp_path / name, *forks(processes, "train", f"run={tmp_path / name}", *overrides))

    return run


@pytest.fixture(scope="session")
def undisturbed(forks: "Forks", tmp_path_factory: pytest.TempPathFactory) -> "Finished":
    """A run of two processes, ZeRO-2 and ten steps, with a checkpoint after each."""
    from tests.support.run_results import EVERY_STEP, Finished

    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    status, output = forks(2, "train", f"run={folder}", *EVERY_STEP)
    assert status == 0, output
    return Finished(folder, status, output)


@pytest.fixture
def restored_handlers() -> Iterator[None]:
    """Signal handlers as they were, after a test that trains in this process."""
    from mmldm_scale.training.resilience import signals

    yield
    signals.restore_handlers()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's own
