"""Atomic writes: a file under its final name is always complete.

``write_whole(path, data)`` writes to a temporary ``.tmp`` file beside ``path``, syncs it to the disk and renames it. A
crash leaves at most the temporary file, and two writers of one path cannot mix their data. :class:`WholeFile` does the
same for a file that is written in pieces.
"""

import contextlib
import errno
import glob
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from mmldm_scale.common.errors import UserError

TEMPORARY_SUFFIX = ".tmp"  # of a file that is still being written
FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}  # error numbers in words

_digests: dict[Path, tuple[tuple[int, int], str]] = {}  # bytes and time of change of the files read, and their sha256


class WholeFile:
    """A file that appears under its name when it is committed.

    Use it as a context manager; leaving the block without :meth:`commit` removes what was written.

    Attributes:
        path: the final name.
        bytes: number of bytes written so far.

    Raises:
        UserError: the disk is full; the message has the path and the bytes written so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self._temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
        with full_disk(self.path, self.bytes):
            self._stream: BinaryIO = self._temporary.open("xb")

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        with full_disk(self.path, self.bytes):
            _write(self._stream, data)
        self.bytes += len(data)

    def commit(self) -> None:
        """Sync the data to the disk, then rename the file to its final name, replacing an older one."""
        with full_disk(self.path, self.bytes):
            self._stream.flush()
            _sync(self._stream.fileno())
            self._stream.close()
            _rename(self._temporary, self.path)
            sync(self.path.parent)

    def __enter__(self) -> "WholeFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # closing flushes data that is discarded anyway
            self._stream.close()


@contextlib.contextmanager
def full_disk(path: Path, written: int = 0) -> Iterator[None]:
    """Turn a full-disk error in the block into a UserError that names ``path`` and its ``written`` bytes.

    A quota that is used up counts as a full disk, and is called by its name.
    """
    try:
        yield
    except OSError as error:
        reason = full_disk_reason(error)
        if reason is None:
            raise
        raise UserError(
            f"{path}: {reason} after {written:,} bytes of this file; finished files are kept: "
            "free space and run the same command again to resume"
        ) from None


def full_disk_reason(error: BaseException | None) -> str | None:
    """Return in words that the disk is full, or the quota used up, if ``error`` or what caused it says so."""
    while error:
        number = error.errno if isinstance(error, OSError) else None
        for full, reason in FULL.items():
            if number == full or f"(os error {full})" in str(error):  # the latter from safetensors
                return reason
        error = error.__cause__ or error.__context__
    return None


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically; raise UserError if the disk is full."""
    with WholeFile(path) as file:
        file.write(data)
        file.commit()


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed processes have left of ``path``, which no other process writes now."""
    for file in path.parent.glob(f"{glob.escape(path.name)}.*{TEMPORARY_SUFFIX}"):
        file.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Sync a file's content, or a folder's entries (new names, removals), to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file's content, which a process reads once unless its size or time changes."""
    status = path.stat()
    state = status.st_size, status.st_mtime_ns
    known, digest = _digests.get(path.absolute(), (None, ""))
    if known != state:
        digest = sha256(path)
        _digests[path.absolute()] = state, digest
    return digest


# Side effects as functions of one line, so that a test can make them fail.


def _write(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)


def _rename(old: Path, new: Path) -> None:
    os.replace(old, new)
