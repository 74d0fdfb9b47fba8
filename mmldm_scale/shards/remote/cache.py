"""A bounded folder on the node's own disk for the tars of sets that lie elsewhere: on a shared disk, or at a URL.

    cache = Cache("/local/scratch/mmldm", limit=200 * 10**9)
    shards = ShardSet("s3://bucket/latents", "latents", cache)

A tar is copied whole when it is first needed, held against its sha256 on arrival, and named by it. All processes of a
node share the folder without a coordinator; what lies in it says everything, and file locks (``flock``) say who is at
work, so that a process killed at any moment leaves nothing that another could misread:

- ``SHA256.tar`` is whole and checked. Whoever reads it holds a shared lock, for as long as it is open or mapped.
- ``SHA256.part`` is on its way, already as long as it will be. Whoever fetches it holds an exclusive lock; a part that
  nobody holds was left by a killed process, and is fetched anew or makes room.
- ``lock`` is held while files are counted, removed or renamed. To make room the least recently opened go first, but
  never one that somebody holds a lock on.
- ``sets/…/`` are the manifests and indexes of remote sets; they are small and not counted.
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

PATIENCE = 60.0  # seconds that a read waits for others to let go of tars when there is no room
INDEXES_AT_ONCE = 16


class NoRoom(UserError):
    """All that a cache holds is in use."""


class Cache:
    """Tars of any number of sets, in at most ``limit`` bytes of one folder."""

    def __init__(self, folder: str | Path, limit: int) -> None:
        """Use ``folder``, made if it is missing; raise UserError if it cannot be written."""
        self.folder = Path(folder)
        self.limit = limit
        try:
            (self.folder / "sets").mkdir(parents=True, exist_ok=True)
            (self.folder / "lock").touch()
        except OSError as error:
            raise UserError(f"{folder}: cannot be used to keep shards: {error.strerror}") from None

    def open(self, tar: StoredTar) -> BinaryIO:
        """Return the local copy of ``tar``, fetched if need be; it stays as long as the file or a map of it is open.

        Raises:
            DamagedSet: what arrives is not what it has to be, also when tried again.
            UserError: it cannot be reached, the disk is full, or all that the cache holds is in use (NoRoom).
        """
        while True:
            stream = self._open_whole(tar)
            if stream is not None:
                return stream
            self.fetch(tar)

    def fetch(self, tar: StoredTar, wait: bool = True) -> None:
        """Copy ``tar`` here unless it is; without ``wait``, not if somebody is at it already or there is no room yet.

        Raises:
            DamagedSet, UserError: as :meth:`open`.
        """
        part = self.folder / f"{tar.sha256}.part"
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
        with open(descriptor, "r+b", buffering=0) as stream, _locked(stream, fcntl.LOCK_EX, wait) as held:
            if not held or not _is_at(stream, part):
                return  # somebody else is at it, or has just done it
            try:
                if not self._whole(tar).exists():
                    self._reserve(tar, part, stream, wait)
                    download(tar, stream)
                    os.fsync(stream.fileno())
                    with self._counting():
                        os.rename(part, self._whole(tar))
                    sync(self.folder)
            finally:
                if _is_at(stream, part):
                    part.unlink()

    def indexes(self, url: str) -> Path:
        """Return a local folder with the manifest and the indexes of the remote set at ``url``.

        The manifest is read anew each time; the indexes that belong to it are kept from the last time.

        Raises:
            DamagedSet: a file does not match its checksum.
            UserError: there is no finished set, or it cannot be reached.
        """
        url = url.rstrip("/")
        manifest = read_checked(f"{url}/{MANIFEST}")
        folder = self.folder / "sets" / hashlib.sha256(manifest).hexdigest()[:32]
        folder.mkdir(exist_ok=True)
        write_whole(folder / MANIFEST, manifest)
        names = [f"{entry.name}.json" for entry in Manifest.read(folder).shards]
        missing = [name for name in names if not (folder / name).exists()]
        with ThreadPoolExecutor(INDEXES_AT_ONCE) as pool:
            found = pool.map(lambda name: read_checked(f"{url}/{name}"), missing)
            progress = tqdm(found, f"indexes of {url}", len(missing), leave=False, delay=3)
            for name, data in zip(missing, progress, strict=True):
                write_whole(folder / name, data)
        return folder

    def _whole(self, tar: StoredTar) -> Path:
        return self.folder / f"{tar.sha256}.tar"

    def _open_whole(self, tar: StoredTar) -> BinaryIO | None:
        try:
            stream = self._whole(tar).open("rb")
        except FileNotFoundError:
            return None
        fcntl.flock(stream, fcntl.LOCK_SH)  # let go of by the kernel, with the file's last descriptor or map
        if not _is_at(stream, self._whole(tar)):  # removed between opening and locking
            stream.close()
            return None
        os.utime(stream.fileno())  # used last
        return stream

    def _reserve(self, tar: StoredTar, part: Path, stream: BinaryIO, wait: bool) -> None:
        """Make room for ``tar`` and give its ``part`` its length, which counts from then on."""
        give_up = time.monotonic() + (PATIENCE if wait else 0)
        while True:
            with self._counting():
                used = self._make_room(tar.bytes, part)
                if used + tar.bytes <= self.limit:
                    os.ftruncate(stream.fileno(), tar.bytes)
                    return
            if time.monotonic() >= give_up:
                raise NoRoom(
                    f"{self.folder}: no room for the {tar.bytes:,} bytes of {tar.url}, while {used:,} of "
                    f"{self.limit:,} are in use; a larger reading.stage_gigabytes or a smaller reading.window fits"
                )
            time.sleep(0.5)

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        """Have the folder to oneself: nobody else reserves, removes or renames, so that what is counted stays true."""
        with (self.folder / "lock").open("rb") as lock, _locked(lock, fcntl.LOCK_EX):
            yield

    def _make_room(self, size: int, own: Path) -> int:
        """Remove what was opened longest ago until ``size`` bytes fit; return the bytes that are still taken."""
        files = []
        for path in self.folder.iterdir():
            if path.suffix in (".tar", ".part") and path != own:
                with contextlib.suppress(FileNotFoundError):  # renamed or given up meanwhile
                    files.append((path.stat(), path))
        used = sum(found.st_size for found, _ in files)
        for found, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
            if used + size <= self.limit:
                break
            if _remove_unused(path):
                used -= found.st_size
        return used


def _remove_unused(path: Path) -> bool:
    """Remove ``path`` unless a living process holds a lock on it; return whether it is gone."""
    try:
        with path.open("rb") as stream, _locked(stream, fcntl.LOCK_EX, wait=False) as held:
            if held and _is_at(stream, path):
                path.unlink()
            return held
    except FileNotFoundError:
        return True


@contextlib.contextmanager
def _locked(stream: BinaryIO, kind: int, wait: bool = True) -> Iterator[bool]:
    """Hold a lock of ``kind`` on the open file; gives whether it could be had.

    It is let go of by name: a process forked meanwhile has the descriptor too, and would keep it.
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
    """Return whether ``path`` is still the name of the open file."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False
