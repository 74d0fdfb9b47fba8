"""Reading whole files from a shared disk or from a URL that fsspec supports (s3://, gs://, hf://, https://, …).

``download`` copies a tar, ``read_checked`` returns a JSON file of a set; both verify checksums. After a lost connection
or a truncated or changed file they retry a few times, with growing pauses, before they raise. S3, Google Cloud Storage
and https require further packages, the extra ``remote``; ``hf://datasets/OWNER/NAME/…`` does not.
"""

import hashlib
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import fsspec

from mmldm_scale.common.addresses import is_url
from mmldm_scale.common.atomic_files import full_disk_reason
from mmldm_scale.common.errors import Outage, UserError
from mmldm_scale.shards.json_files import JSON_LIMIT, DamagedSet, parse_json
from mmldm_scale.shards.manifest import MANIFEST, Kind, Manifest

CHUNK = 16 << 20  # bytes read at once
PAUSES = (1.0, 4.0, 16.0)  # seconds before each retry

Result = TypeVar("Result")


@dataclass(frozen=True)
class StoredTar:
    """Location of a tar (path or URL), its size in bytes and its sha256 (hex)."""

    url: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):  # it becomes the name of a file
            raise DamagedSet(f"{self.url}: {self.sha256!r}, in the set's manifest, is not a sha256")


def read_checked(url: str) -> bytes:
    """Return the content of one of a set's JSON files after verifying its checksum.

    Raises:
        DamagedSet: the content does not match its checksum, after all retries.
        UserError: there is no such file.
        Outage: the file cannot be read, after all retries.
    """

    def attempt() -> bytes:
        with _open(url) as source:
            data = source.read(JSON_LIMIT + 1)
        if len(data) > JSON_LIMIT:
            raise UserError(f"{url}: larger than {JSON_LIMIT:,} bytes, the limit of a set's JSON files")
        parse_json(data, url)
        return data

    return with_retries(url, attempt)


def read_manifest(location: str, kind: Kind | None = None) -> Manifest:
    """Return the manifest of the finished set in the folder or at the URL ``location``.

    Raises: as :meth:`Manifest.read` and :func:`read_checked`.
    """
    if not is_url(location):
        return Manifest.read(location, kind)
    content = read_checked(f"{location.rstrip('/')}/{MANIFEST}")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST).write_bytes(content)
        try:
            return Manifest.read(folder, kind)
        except UserError as error:
            raise type(error)(str(error).replace(folder, location)) from None


def download(tar: StoredTar, stream: BinaryIO) -> None:
    """Copy ``tar`` to ``stream`` (unbuffered, written from its beginning) and verify its size and sha256.

    Raises:
        DamagedSet: size or sha256 do not match, after all retries.
        UserError: there is no such file, or the local disk is full.
        Outage: the file cannot be read, after all retries.
    """
    with_retries(tar.url, lambda: _copy(tar, stream))


def _copy(tar: StoredTar, stream: BinaryIO) -> None:
    digest, size = hashlib.sha256(), 0
    stream.seek(0)
    with _open(tar.url) as source:
        while chunk := source.read(min(CHUNK, tar.bytes + 1 - size)):
            size += len(chunk)
            digest.update(chunk)
            _store(stream, chunk, tar)
    if size != tar.bytes:
        actual = f"{size:,}" if size < tar.bytes else "more"
        raise DamagedSet(f"{tar.url}: {tar.bytes:,} bytes expected, {actual} found; the file is damaged")
    if digest.hexdigest() != tar.sha256:
        raise DamagedSet(f"{tar.url}: its content does not match its sha256; the file is damaged")


def _store(stream: BinaryIO, chunk: bytes, tar: StoredTar) -> None:
    try:
        _write(stream, chunk)
    except OSError as error:
        reason = full_disk_reason(error)
        if reason is None:
            raise
        raise UserError(f"{stream.name}: {reason}; {tar.url} needs {tar.bytes:,} bytes") from None


def _open(url: str) -> BinaryIO:
    if not is_url(url):
        return open(url, "rb")
    filesystem, path = file_system(url)
    stream: BinaryIO = filesystem.open(path, "rb")
    return stream


def file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of ``url`` and the path in it; raise UserError if there is none for its protocol."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # a package is missing, or the protocol is unknown
        raise UserError(f"{url}: {' '.join(str(error).split())[:200]}") from None
    return filesystem, path


def with_retries(url: str, attempt: Callable[[], Result], problem_is: str = "cannot be read") -> Result:
    """Return the result of ``attempt()``; retry after damage and after errors of the file system.

    Raises:
        UserError: there is no such file, or permission to use it.
        DamagedSet, Outage: of the last attempt.
    """
    for pause in (*PAUSES, None):
        try:
            return attempt()
        except FileNotFoundError:
            raise UserError(f"{url}: there is no such file") from None
        except PermissionError as error:
            raise UserError(f"{url}: {problem_is}: {_reason(error)}") from None
        except DamagedSet as error:
            problem: UserError = error
        except UserError:
            raise
        except Exception as error:  # the errors of remote file systems have no common base class
            problem = Outage(f"{url}: {problem_is}: {_reason(error)}")
        if pause is None:
            raise type(problem)(f"{problem} (tried {len(PAUSES) + 1} times)")
        _sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# Side effects as functions of one line, so that a test can make them fail.


def _write(stream: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def _sleep(seconds: float) -> None:
    time.sleep(seconds)
