"""The fixture that trains the toy task."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmldm_scale.training import signals
from tests.training.harness import EVERY_STEP, Finished, Forks


@pytest.fixture
def train(forks: Forks, tmp_path: Path) -> Callable[..., Finished]:
    """Train the toy in ``tmp_path / name`` to its end, in processes of its own."""

    def run(*overrides: str, name: str = "run", processes: int = 2) -> Finished:
        return Finished(tmp_path / name, *forks(processes, "train", f"run={tmp_path / name}", *overrides))

    return run


@pytest.fixture(scope="session")
def undisturbed(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of two processes, ZeRO-2 and ten steps, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    status, output = forks(2, "train", f"run={folder}", *EVERY_STEP)
    assert status == 0, output
    return Finished(folder, status, output)


@pytest.fixture
def restored_handlers() -> Iterator[None]:
    """Signal handlers as they were, after a test that trains in this process."""
    yield
    signals.restore_handlers()
