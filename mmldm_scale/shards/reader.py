"""Reading a finished set: any sample by its index, from memory-mapped tars, its checksum looked at each time.

``ShardSet(folder, "latents")[i]`` is a :class:`Sample`, and ``read(indices)`` gives many at once, faster; then
``shards.clips.decode_clip`` and ``shards.latents.decode_latents`` turn members into arrays. Tars are mapped when a
process first needs them, so a set may be handed to loader workers. Truncated or swapped files are refused on opening;
other damage raises :class:`DamagedSample` when the sample is read, before anything uses it. With a
``shards.remote.cache`` the set may lie anywhere that fsspec reaches, and its tars are copied to the node's own disk
first.
"""

import functools
import hashlib
import json
import mmap
import os
import resource
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmldm_scale.common.errors import Outage, UserError
from mmldm_scale.shards.index import ShardIndex
from mmldm_scale.shards.json_files import DamagedSet
from mmldm_scale.shards.manifest import Kind, Manifest
from mmldm_scale.shards.remote.cache import Cache
from mmldm_scale.shards.remote.remote import StoredTar, is_url

_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
OPEN_TARS = 4096 if _FILES == resource.RLIM_INFINITY else _FILES // 2  # a mapped tar keeps a file descriptor


class DamagedSample(Exception):
    """A sample's bytes are not those that were written; the message names key, shard and set."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample: its key and its members ("json" included) as views of the mapped tar.

    ``classes`` is the class that each of its set's classes is in the mixture it is read from; None: the same.
    """

    key: str
    members: dict[str, memoryview]
    classes: Sequence[int] | None = None

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        """The parsed "json" member: path, start, label, class, …"""
        try:
            meta = json.loads(str(self.members["json"], "utf-8"))
            if self.classes is not None and meta.get("class") is not None:
                meta["class"] = self.classes[meta["class"]]
        except (ValueError, RecursionError, AttributeError, TypeError, IndexError) as error:
            raise DamagedSample(f"sample {self.key}: its json member is none of ours: {error}") from None
        return meta


class ShardSet:
    """A finished set as a sequence of :class:`Sample`, in shard order.

    Attributes:
        location: the folder or URL that it was opened by.
        folder: where its indexes and manifest are read: the same, or the cache's copy of a remote set's.
        manifest: what it holds and where it comes from.
        sizes: how many samples each shard holds.
    """

    def __init__(
        self,
        location: str | Path,
        kind: Kind | None = None,
        cache: Cache | None = None,
        open_tars: int | None = None,
    ) -> None:
        """Open the set and check every shard's index, name and size.

        Args:
            location: its folder, or a URL (s3://…, gs://…, https://…) if there is a ``cache``.
            kind: what it has to hold.
            cache: where its tars are copied to before they are read; None reads them where they lie.
            open_tars: how many this process keeps mapped at most; None: as many as it may open files, or as take half
                of the cache.

        Raises:
            UserError: there is no finished set, one of another ``kind``, or a damaged one (DamagedSet).
        """
        self.location = str(location)
        self._cache, self._open_tars = cache, open_tars
        self.folder = self._index_folder()
        try:
            self.manifest = Manifest.read(self.folder, kind)
        except UserError as error:  # names the set by where it lies, not where its indexes were copied to
            raise type(error)(str(error).replace(str(self.folder), self.location)) from None
        if cache is not None and open_tars is None:
            largest = max((entry.bytes for entry in self.manifest.shards), default=1)
            self._open_tars = max(1, cache.limit // (2 * largest))
        indexes = [self._read_index(number) for number in range(len(self.manifest.shards))]
        filled = [index for index in indexes if len(index)]
        self.members = filled[0].members if filled else []
        for index in filled:
            if index.members != self.members:
                raise DamagedSet(f"{self.location}: {index.name} has members {index.members}, others {self.members}")
        if filled and "json" not in self.members:
            raise DamagedSet(f"{self.location}: its samples have members {self.members}, without json")
        width = len(self.members)
        self.sizes = [len(index) for index in indexes]
        self._ends = np.cumsum(self.sizes, dtype=np.int64)  # (shards,)
        self._keys = np.array([key for index in indexes for key in index.keys], dtype=np.bytes_)  # (n,)
        self._crc32 = np.concatenate([np.empty(0, np.int64), *(index.crc32 for index in indexes)])  # (n,)
        self._spans = np.concatenate([np.empty((0, 2), np.int64), *(index.spans for index in filled)])  # (n, 2)
        ranges = (np.stack([index.offsets, index.offsets + index.sizes], axis=-1) for index in filled)
        self._ranges = np.concatenate([np.empty((0, width, 2), np.int64), *ranges])  # (n, m, 2): each member's
        self._open: OrderedDict[int, memoryview] = OrderedDict()  # mapped tars by shard, least recently used first

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index`` (0 ≤ index < len); raise DamagedSample if its checksum is not the one written."""
        return self.read([index])[0]

    def read(self, indices: Sequence[int]) -> list[Sample]:
        """Return the samples at ``indices``, in that order; raise DamagedSample if the checksum of one is wrong."""
        places = np.asarray(indices, np.int64)
        if len(places) and not 0 <= places.min() <= places.max() < len(self):
            raise IndexError(f"{self.location}: samples {indices} of {len(self)}")
        shards = np.searchsorted(self._ends, places, side="right").tolist()
        columns = (self._spans[places], self._crc32[places], self._keys[places], self._ranges[places])
        found = []
        for shard, (start, end), crc32, key, ranges in zip(shards, *(c.tolist() for c in columns), strict=True):
            tar = self._tar(shard)
            if zlib.crc32(tar[start:end]) != crc32:
                name = self.manifest.shards[shard].name
                raise DamagedSample(
                    f"{self.location}: sample {key.decode()} in {name}: its bytes do not match their checksum"
                )
            members = {name: tar[first:last] for name, (first, last) in zip(self.members, ranges, strict=True)}
            found.append(Sample(key.decode(), members))
        return found

    @functools.cached_property
    def fingerprint(self) -> str:
        """The identity of the set's content: the sha256 (hex) over those of its tars, in order."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.manifest.shards).encode()).hexdigest()

    def key(self, index: int) -> str:
        """Return the key of sample ``index`` without reading it."""
        return self._keys[index].decode("ascii")

    def shard_range(self, shard: int) -> range:
        """Return the indices of the samples in shard number ``shard``."""
        return range(int(self._ends[shard - 1]) if shard else 0, int(self._ends[shard]))

    def shard_of(self, index: int) -> str:
        """Return the name of the shard that holds sample ``index``."""
        return self.manifest.shards[int(np.searchsorted(self._ends, index, side="right"))].name

    def stored_tar(self, shard: int) -> StoredTar:
        """Return where the tar of shard number ``shard`` lies and what it has to be."""
        entry = self.manifest.shards[shard]
        return StoredTar(f"{self.location.rstrip('/')}/{entry.name}.tar", entry.bytes, entry.sha256)

    def close(self) -> None:
        """Let go of the mapped tars; reading maps them again."""
        self._open.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def _index_folder(self) -> Path:
        if not is_url(self.location):
            return Path(self.location)
        if self._cache is None:
            raise UserError(f"{self.location}: a set that is not on this machine needs reading.stage=FOLDER on it")
        return self._cache.indexes(self.location)

    def _read_index(self, number: int) -> ShardIndex:
        entry = self.manifest.shards[number]
        index = ShardIndex.read(self.folder, number)
        if (len(index), index.bytes, index.sha256) != (entry.samples, entry.bytes, entry.sha256):
            raise DamagedSet(f"{self.location}/{index.name}.json: is not the index of this set's {index.name}")
        if not is_url(self.location):
            index.check_tar(self.folder)
        return index

    def _tar(self, shard: int) -> memoryview:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        tar = self.stored_tar(shard)
        if len(self._open) >= (self._open_tars or OPEN_TARS):
            self._open.popitem(last=False)  # unmapped when the last sample that views it is gone
        with self._opened(tar) as stream:
            found = os.fstat(stream.fileno()).st_size
            if found != tar.bytes:
                raise DamagedSet(f"{tar.url}: {tar.bytes:,} bytes expected, {found:,} found; it changed since opening")
            self._open[shard] = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        return self._open[shard]

    def _opened(self, tar: StoredTar) -> BinaryIO:
        if self._cache is not None:
            return self._cache.open(tar)
        try:
            return open(tar.url, "rb")
        except OSError as error:
            raise Outage(f"{tar.url}: cannot be read any more: {error.strerror}") from None
