"""The fixture that trains the toy task."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.harness import ENVIRONMENT, Finished, command


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
