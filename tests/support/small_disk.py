"""A small file system in memory, for the tests of a full disk."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mount_small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a file system of ``kilobytes`` at the new ``folder`` until the end; skip the test if that is refused."""
    folder.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size={kilobytes}k tmpfs {folder} 2>/dev/null"):
        pytest.skip("needs root and the right to mount a small file system")
    try:
        yield folder
    finally:
        os.system(f"umount --lazy {folder}")
