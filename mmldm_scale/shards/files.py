"""Files of a shard set: written whole or not at all, read with a limit on their size.

``write_whole(path, data)`` writes aside (``path`` + ``.tmp``), syncs and renames, so that a file under its own name is
complete whatever happens meanwhile; :class:`WholeFile` does the same for a file that is written piece by piece.
"""

import contextlib
import errno
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from mmldm_scale.errors import UserError

ASIDE = ".tmp"  # suffix of a file that is not whole yet
JSON_LIMIT = 1 << 30  # bytes; the plan of two million clips has a few hundred million


class DamagedSet(UserError):
    """A file of a shard set is missing, cut short, changed or not ours; the message names it."""


class WholeFile:
    """A file that appears under its name when it is committed and leaves nothing behind when it is not.

    Use it as a context manager; leaving the block without :meth:`commit` discards what was written. A full disk
    raises :class:`UserError` with the path and the bytes written so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self._aside = path.with_name(path.name + ASIDE)
        with self._full_disk():
            self._stream: BinaryIO = self._aside.open("wb")

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        with self._full_disk():
            _write(self._stream, data)
        self.bytes += len(data)

    def commit(self) -> None:
        """Bring everything to the disk, then give the file its name (replacing an older one)."""
        with self._full_disk():
            self._stream.flush()
            _sync(self._stream.fileno())
            self._stream.close()
            _rename(self._aside, self.path)
            sync_folder(self.path.parent)

    def __enter__(self) -> "WholeFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._aside.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # closing flushes data that nobody wants any more
            self._stream.close()

    @contextlib.contextmanager
    def _full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"{self.path}: the disk is full after {self.bytes:,} bytes of this file; what was finished is kept: "
                "make room and run the same command again to carry on"
            ) from None


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all; raise UserError if the disk is full."""
    with WholeFile(path) as file:
        file.write(data)
        file.commit()


def write_json(path: Path, value: dict[str, Any], indent: int | None = None) -> None:
    """Write ``value`` as JSON, whole or not at all, behind a first key "checksum": the CRC-32 of all after it.

    It is ASCII, so that any file name survives, and plain JSON to every other reader.
    """
    rest = json.dumps(value, indent=indent, allow_nan=False).encode("ascii")[1:] + b"\n"
    write_whole(path, b'{"checksum": "%08x",' % zlib.crc32(rest) + rest)


def read_json(path: Path) -> dict[str, Any]:
    """Return what :func:`write_json` wrote to ``path``; raise DamagedSet if it cannot be read or was changed."""
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise DamagedSet(f"{path}: larger than {JSON_LIMIT:,} bytes, so no file of ours")
        data = path.read_bytes()
        checked = re.match(rb'{"checksum": "([0-9a-f]{8})",', data)
        if not checked or int(checked[1], 16) != zlib.crc32(data[checked.end() :]):
            raise DamagedSet(f"{path}: its content does not match its checksum; the file is damaged")
        value = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedSet(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from None
    del value["checksum"]
    return value


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries (new names, removals) to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


# The side effects, one line each, so that a test can make them fail.


def _write(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)


def _rename(old: Path, new: Path) -> None:
    os.replace(old, new)
