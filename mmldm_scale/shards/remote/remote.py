"""Reading whole files that lie elsewhere: on a shared disk, or at a URL that fsspec knows (s3://, gs://, https://, …).

What goes wrong on the way (a lost connection, a cut or changed file) is tried again a few times, with growing pauses,
and then is one clear error. S3, Google Cloud Storage and https need packages of their own: the extra ``remote``.
"""

import errno
import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

import fsspec

from mmldm_scale.common.errors import Outage, UserError
from mmldm_scale.shards.json_files import JSON_LIMIT, DamagedSet, parse_json

CHUNK = 16 << 20  # bytes read at once
PAUSES = (1.0, 4.0, 16.0)  # seconds before each further try

Result = TypeVar("Result")


@dataclass(frozen=True)
class StoredTar:
    """Where a tar lies (a path or URL), and what it has to be: its size in bytes and its sha256 (hex)."""

    url: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):  # it becomes a file's name
            raise DamagedSet(f"{self.url}: {self.sha256!r}, in the set's manifest, is no sha256")


def is_url(location: str) -> bool:
    """Return whether ``location`` is a URL (s3://…) and not a path."""
    return "://" in location


def read_checked(url: str) -> bytes:
    """Return the content of one of a set's JSON files, its checksum looked at.

    Raises:
        DamagedSet: it does not match its checksum, also when tried again.
        UserError: there is no such file, or it cannot be reached (Outage).
    """

    def attempt() -> bytes:
        with _open(url) as source:
            data = source.read(JSON_LIMIT + 1)
        if len(data) > JSON_LIMIT:
            raise UserError(f"{url}: larger than {JSON_LIMIT:,} bytes, so no file of ours")
        parse_json(data, url)
        return data

    return _persist(url, attempt)


def download(tar: StoredTar, stream: BinaryIO) -> None:
    """Write ``tar`` to ``stream`` (unbuffered, from its beginning), its size and sha256 looked at.

    Raises:
        DamagedSet: what arrives is not what it has to be, also when tried again.
        UserError: there is no such file, it cannot be reached (Outage), or the local disk is full.
    """
    _persist(tar.url, lambda: _copy(tar, stream))


def _copy(tar: StoredTar, stream: BinaryIO) -> None:
    digest, size = hashlib.sha256(), 0
    stream.seek(0)
    with _open(tar.url) as source:
        while chunk := source.read(min(CHUNK, tar.bytes + 1 - size)):
            size += len(chunk)
            digest.update(chunk)
            _store(stream, chunk, tar)
    if size != tar.bytes:
        found = f"{size:,}" if size < tar.bytes else "more"
        raise DamagedSet(f"{tar.url}: {tar.bytes:,} bytes expected, {found} found; the file is damaged")
    if digest.hexdigest() != tar.sha256:
        raise DamagedSet(f"{tar.url}: its content does not match its sha256; the file is damaged")


def _store(stream: BinaryIO, chunk: bytes, tar: StoredTar) -> None:
    try:
        _write(stream, chunk)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{stream.name}: the disk is full; {tar.bytes:,} bytes of {tar.url} have no room") from None


def _open(url: str) -> BinaryIO:
    if not is_url(url):
        return open(url, "rb")
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # a package is missing; no such protocol
        raise UserError(f"{url}: {' '.join(str(error).split())[:200]}") from None
    return filesystem.open(path, "rb")


def _persist(url: str, attempt: Callable[[], Result]) -> Result:
    """Return what ``attempt()`` returns, trying again after damage and whatever a file system raises."""
    for pause in (*PAUSES, None):
        try:
            return attempt()
        except FileNotFoundError:
            raise UserError(f"{url}: there is no such file") from None
        except DamagedSet as error:
            problem: UserError = error
        except UserError:
            raise
        except Exception as error:  # remote file systems have no common base class for what goes wrong
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            problem = Outage(f"{url}: cannot be read: {reason}")
        if pause is None:
            raise type(problem)(f"{problem} (tried {len(PAUSES) + 1} times)")
        _sleep(pause)
    raise AssertionError("the last try returns or raises")


# The side effects, one line each, so that a test can make them fail.


def _write(stream: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def _sleep(seconds: float) -> None:
    time.sleep(seconds)
