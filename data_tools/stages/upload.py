"""Uploads a finished shard set to a URL: an object store cannot hold a set that is being made.

``Upload(folder, remote)`` takes what :mod:`.shard_set` has made in a folder that the processes share. The plan goes
first and tells whose set it is; each shard's index follows its tar, and the manifest comes last, so that readers see a
finished set or none. Stopped at any moment and started again, only what is missing is uploaded. Any number of processes
may share the work, with leases in the local folder.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mmldm_scale.common.atomic_files import TEMPORARY_SUFFIX, sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.shards.json_files import DamagedSet
from mmldm_scale.shards.manifest import DROPPED, MANIFEST, PLAN, Manifest, ShardEntry
from mmldm_scale.shards.remote.remote_folder import RemoteFolder

from ..launching.progress import Progress
from .share_out import share_out

REQUESTS = 16  # objects looked at at the same time


@dataclass(frozen=True)
class Upload:
    """The set in ``folder``, or that will be there, and where it is uploaded to."""

    folder: Path
    remote: RemoteFolder

    def check(self) -> None:
        """Check, before the set is made, that it can be uploaded.

        Raises:
            UserError: the URL cannot be written, or holds another set or other files.
        """
        names = self.remote.names()
        plan = self.folder / PLAN
        if PLAN in names:
            if not plan.is_file() or self.remote.read(PLAN) != plan.read_bytes():
                raise UserError(
                    f"{self.remote.url}: holds a set that was not made in {self.folder}; give the --work folder of "
                    "that set, or another URL"
                )
        elif foreign := [name for name in names if not name.endswith(TEMPORARY_SUFFIX)]:
            raise UserError(f"{self.remote.url}: holds other files ({min(foreign)}, …); give a URL with nothing below")
        self.remote.check_writable()

    def run(self) -> None:
        """Upload what the URL lacks of the finished set.

        Raises:
            UserError: as :meth:`check`; a tar differs from its sha256 (DamagedSet).
        """
        self.check()
        manifest = Manifest.read(self.folder)
        self._put(PLAN)
        entries = manifest.shards
        with ThreadPoolExecutor(REQUESTS) as pool:
            present = {entry.name for entry, found in zip(entries, pool.map(self._has, entries), strict=True) if found}

        def is_uploaded(number: int) -> bool:
            return entries[number].name in present or self._has(entries[number])

        names, sizes = [entry.name for entry in entries], [entry.samples for entry in entries]
        with Leases(self.folder) as leases, Progress(manifest.samples, "uploading", "samples") as bar:
            for numbers in share_out(names, sizes, is_uploaded, leases, bar):
                for number in numbers:
                    self._upload_shard(entries[number])
                    present.add(names[number])
                    leases.release(names[number])
                    bar.update(sizes[number])
        for name in (DROPPED, MANIFEST):
            self._put(name)
        print(f"{self.remote.url}: {manifest.samples} {manifest.kind} in {len(entries)} shards, as in {self.folder}")

    def _has(self, entry: ShardEntry) -> bool:
        """Return whether a shard is at the URL: its tar has the right size, and its index is as it is here."""
        is_whole = not entry.bytes or self.remote.size(f"{entry.name}.tar") == entry.bytes
        name = f"{entry.name}.json"
        return is_whole and self.remote.read(name) == (self.folder / name).read_bytes()

    def _upload_shard(self, entry: ShardEntry) -> None:
        tar = self.folder / f"{entry.name}.tar"
        if entry.bytes:
            if sha256(tar) != entry.sha256:
                raise DamagedSet(f"{tar}: differs from its sha256; repair the set in {self.folder} first")
            self.remote.put(tar, tar.name)
        self._put(f"{entry.name}.json")

    def _put(self, name: str) -> None:
        """Upload the file ``name`` unless the object is as it is."""
        if self.remote.read(name) != (self.folder / name).read_bytes():
            self.remote.put(self.folder / name, name)
