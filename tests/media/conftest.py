"""The makers of files to read, as fixtures."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.datasets import recordings


@pytest.fixture
def record() -> Callable[..., Path]:
    return recordings.record


@pytest.fixture
def onsets() -> Callable[..., tuple[list[float], list[float]]]:
    return recordings.onsets
