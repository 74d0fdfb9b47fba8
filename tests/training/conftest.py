"""The fixture that trains the toy task."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmldm_scale.training import signals
from tests.training.harness import ENVIRONMENT, EVERY_STEP, Finished, command


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Finished]:
    """Train the toy in ``tmp_path / name`` to its end, in processes of its own."""

    def run(*overrides: str, name: str = "run", processes: int = 2) -> Finished:
        folder = tmp_path / name
        done = subprocess.run(
            command(folder, *overrides, processes=processes),
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        return Finished(folder, done.returncode, done.stdout)

    return run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of two processes, ZeRO-2 and ten steps, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = subprocess.run(command(folder, *EVERY_STEP), env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return Finished(folder, done.returncode, done.stderr)


@pytest.fixture
def restored_handlers() -> Iterator[None]:
    """Signal handlers as they were, after a test that trains in this process."""
    yield
    signals.restore_handlers()
