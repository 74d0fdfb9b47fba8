"""Files written whole or not at all.

``write_whole(path, data)`` writes aside (a ``.tmp`` file beside ``path``), syncs and renames, so that a file under its
own name is complete whatever happens meanwhile, and two writers of one file cannot mix; :class:`WholeFile` does the
same for a file that is written piece by piece.
"""

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from mmldm_scale.common.errors import UserError

ASIDE = ".tmp"  # suffix of a file that is not whole yet


class WholeFile:
    """A file that appears under its name when it is committed and leaves nothing behind when it is not.

    Use it as a context manager; leaving the block without :meth:`commit` discards what was written. A full disk
    raises :class:`UserError` with the path and the bytes written so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self._aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}{ASIDE}")
        with full_disk(self.path, self.bytes):
            self._stream: BinaryIO = self._aside.open("xb")

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        with full_disk(self.path, self.bytes):
            _write(self._stream, data)
        self.bytes += len(data)

    def commit(self) -> None:
        """Bring everything to the disk, then give the file its name (replacing an older one)."""
        with full_disk(self.path, self.bytes):
            self._stream.flush()
            _sync(self._stream.fileno())
            self._stream.close()
            _rename(self._aside, self.path)
            sync(self.path.parent)

    def __enter__(self) -> "WholeFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._aside.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # closing flushes data that nobody wants any more
            self._stream.close()


@contextlib.contextmanager
def full_disk(path: Path, written: int = 0) -> Iterator[None]:
    """Turn a full disk in the block into a UserError that names ``path`` and the bytes ``written`` of it before."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{path}: the disk is full after {written:,} bytes of this file; what was finished is kept: "
            "make room and run the same command again to carry on"
        ) from None


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all; raise UserError if the disk is full."""
    with WholeFile(path) as file:
        file.write(data)
        file.commit()


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's entries (new names, removals), to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# The side effects, one line each, so that a test can make them fail.


def _write(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)


def _rename(old: Path, new: Path) -> None:
    os.replace(old, new)
