"""Cache: a folder of limited size on the node's own disk for the tars of sets on a shared disk or at a URL.

    cache = Cache("/local/scratch/mmldm", limit=200 * 10**9)
    shards = ShardSet("s3://bucket/latents", "latents", cache)

A tar is copied when it is first needed, verified against its sha256, and named after it. All processes of a node share
the folder without a coordinator: its files and their locks (``flock``) are the whole state, so a process that is killed
at any time leaves nothing that another could misread.

- ``SHA256.tar`` is complete and verified. A reader holds a shared lock on it while it is open or mapped.
- ``SHA256.part`` is being fetched and already has its final length. The fetching process holds an exclusive lock; a
  part without a lock was left by a killed process, and is fetched again or removed.
- ``lock`` is held while files are counted, removed or renamed. To make room, the least recently opened files are
  removed first, but never a locked one.
- ``sets/…/`` contain the manifests and indexes of remote sets; they are small and not counted.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from mmldm_scale.common.atomic_files import sync, write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.shards.manifest import MANIFEST, Manifest
from mmldm_scale.shards.remote.remote import StoredTar, download, read_checked

ROOM_TIMEOUT = 60.0  # seconds that a read waits for other readers to release tars when the cache is full
RETRY_INTERVAL = 0.5  # seconds between two attempts to make room
INDEX_DOWNLOADS = 16  # index files downloaded at the same time


class NoRoom(UserError):
    """The cache is full, and all of its tars are in use."""


class Cache:
    """Tars of any number of sets, in at most ``limit`` bytes of ``folder``."""

    def __init__(self, folder: str | Path, limit: int) -> None:
        """Use ``folder``, and make it if it is missing; raise UserError if it cannot be written."""
        self.folder = Path(folder)
        self.limit = limit
        try:
            (self.folder / "sets").mkdir(parents=True, exist_ok=True)
            (self.folder / "lock").touch()
        except OSError as error:
            raise UserError(f"{folder}: cannot be used as a cache of shards: {error.strerror}") from None

    def open(self, tar: StoredTar) -> BinaryIO:
        """Return the local copy of ``tar``, after fetching it if it is missing.

        It is not removed while the file or a memory map of it is open.

        Raises:
            DamagedSet: the copy does not match its size or sha256, after all retries.
            NoRoom: the cache is full, and all of its tars are in use.
            UserError: there is no such file, it cannot be read (Outage), or the disk is full.
        """
        while True:
            stream = self._open_cached(tar)
            if stream is not None:
                return stream
            self.fetch(tar)

    def fetch(self, tar: StoredTar, wait: bool = True) -> None:
        """Copy ``tar`` into the cache unless it is there.

        Args:
            tar: the tar.
            wait: wait for another process that is fetching it, or for room. If False, return in the first case and
                raise NoRoom in the second.

        Raises:
            DamagedSet, NoRoom, UserError: as :meth:`open`.
        """
        part = self.folder / f"{tar.sha256}.part"
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
        with open(descriptor, "r+b", buffering=0) as stream, _locked(stream, fcntl.LOCK_EX, wait) as locked:
            if not locked or not _is_at(stream, part):
                return  # another process is fetching it, or has just finished
            try:
                if not self._path(tar).exists():
                    self._reserve(tar, part, stream, wait)
                    download(tar, stream)
                    os.fsync(stream.fileno())
                    with self._counting():
                        os.rename(part, self._path(tar))
                    sync(self.folder)
            finally:
                if _is_at(stream, part):
                    part.unlink()

    def indexes(self, url: str) -> Path:
        """Return a local folder with the manifest and the indexes of the remote set at ``url``.

        The manifest is downloaded each time, its indexes only once.

        Raises:
            DamagedSet: a file does not match its checksum.
            UserError: there is no finished set, or it cannot be read.
        """
        url = url.rstrip("/")
        manifest = read_checked(f"{url}/{MANIFEST}")
        folder = self.folder / "sets" / hashlib.sha256(manifest).hexdigest()[:32]
        folder.mkdir(exist_ok=True)
        write_whole(folder / MANIFEST, manifest)
        names = [f"{entry.name}.json" for entry in Manifest.read(folder).shards]
        missing = [name for name in names if not (folder / name).exists()]
        with ThreadPoolExecutor(INDEX_DOWNLOADS) as pool:
            contents = pool.map(lambda name: read_checked(f"{url}/{name}"), missing)
            progress = tqdm(contents, f"indexes of {url}", len(missing), leave=False, delay=3)
            for name, data in zip(missing, progress, strict=True):
                write_whole(folder / name, data)
        return folder

    def _path(self, tar: StoredTar) -> Path:
        return self.folder / f"{tar.sha256}.tar"

    def _open_cached(self, tar: StoredTar) -> BinaryIO | None:
        try:
            stream = self._path(tar).open("rb")
        except FileNotFoundError:
            return None
        fcntl.flock(stream, fcntl.LOCK_SH)  # released by the kernel with the last descriptor or map of the file
        if not _is_at(stream, self._path(tar)):  # removed between opening and locking
            stream.close()
            return None
        os.utime(stream.fileno())  # the modification time is when the tar was last opened
        return stream

    def _reserve(self, tar: StoredTar, part: Path, stream: BinaryIO, wait: bool) -> None:
        """Make room for ``tar`` and give its ``part`` the final length, so that its bytes count from now on."""
        deadline = time.monotonic() + (ROOM_TIMEOUT if wait else 0)
        while True:
            with self._counting():
                used = self._make_room(tar.bytes, part)
                if used + tar.bytes <= self.limit:
                    os.ftruncate(stream.fileno(), tar.bytes)
                    return
            if time.monotonic() >= deadline:
                raise NoRoom(
                    f"{self.folder}: no room for the {tar.bytes:,} bytes of {tar.url}: {used:,} of {self.limit:,} "
                    "bytes are in use; increase reading.stage_gigabytes or reduce reading.window"
                )
            time.sleep(RETRY_INTERVAL)

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        """Hold the folder's lock: no other process reserves, removes or renames files, so that counts stay valid."""
        with (self.folder / "lock").open("rb") as lock, _locked(lock, fcntl.LOCK_EX):
            yield

    def _make_room(self, size: int, own: Path) -> int:
        """Remove the least recently opened tars until ``size`` bytes fit; return the bytes still in use."""
        files = []
        for path in self.folder.iterdir():
            if path.suffix in (".tar", ".part") and path != own:
                with contextlib.suppress(FileNotFoundError):  # renamed or removed meanwhile
                    files.append((path.stat(), path))
        used = sum(status.st_size for status, _ in files)
        for status, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
            if used + size <= self.limit:
                break
            if _remove_unused(path):
                used -= status.st_size
        return used


def _remove_unused(path: Path) -> bool:
    """Remove ``path`` unless a live process holds a lock on it; return whether it was removed."""
    try:
        with path.open("rb") as stream, _locked(stream, fcntl.LOCK_EX, wait=False) as locked:
            if locked and _is_at(stream, path):
                path.unlink()
            return locked
    except FileNotFoundError:
        return True


@contextlib.contextmanager
def _locked(stream: BinaryIO, kind: int, wait: bool = True) -> Iterator[bool]:
    """Lock the open file (``kind`` as for flock); yield whether it was locked, which ``wait=False`` may prevent.

    The lock is released explicitly, because a process forked meanwhile shares the descriptor and would keep it.
    """
    try:
        fcntl.flock(stream, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        fcntl.flock(stream, fcntl.LOCK_UN)


def _is_at(stream: BinaryIO, path: Path) -> bool:
    """Return whether ``path`` still names the open file."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False
