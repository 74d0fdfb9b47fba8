"""Reading a finished shard set: random access by index to memory-mapped tars, with a checksum test at each access.

``ShardSet(folder, "latents")[i]`` returns a :class:`Sample`; ``read(indices)`` returns many, faster. Then
``shards.clips.decode_clip`` and ``shards.latents.decode_latents`` convert members to arrays. A process maps tars when
it first needs them, so a set can be passed to loader workers. Truncated or swapped files are refused on opening; other
damage raises :class:`DamagedSample` when the sample is read. With a ``shards.remote.cache`` the set may be at any URL
that fsspec supports, and its tars are copied to the node's own disk first.
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
from typing import Any, BinaryIO, cast

import numpy as np

from mmldm_scale.common.addresses import is_url
from mmldm_scale.common.errors import Outage, UserError
from mmldm_scale.shards.index import ShardIndex
from mmldm_scale.shards.json_files import DamagedSet
from mmldm_scale.shards.manifest import Kind, Manifest
from mmldm_scale.shards.recordings import UNKNOWN
from mmldm_scale.shards.remote.cache import Cache
from mmldm_scale.shards.remote.remote import StoredTar

_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # limit of open files of this process
OPEN_TARS = 4096 if _FILES == resource.RLIM_INFINITY else _FILES // 2  # a mapped tar occupies a file descriptor


class DamagedSample(Exception):
    """A sample's bytes differ from those that were written; the message names key, shard and set."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample of a set.

    Attributes:
        key: its key.
        members: its members, "json" included, by name, as views of the mapped tar.
        classes: maps a class of the set to a class of the mixture that the sample is read from; None: they are equal.
    """

    key: str
    members: dict[str, memoryview]
    classes: Sequence[int] | None = None

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        """The parsed "json" member: path, start, label, class, …; raises DamagedSample if it cannot be parsed."""
        try:
            meta = json.loads(str(self.members["json"], "utf-8"))
            if self.classes is not None and meta.get("class") is not None:
                meta["class"] = self.classes[meta["class"]]
        except (ValueError, RecursionError, AttributeError, TypeError, IndexError) as error:
            raise DamagedSample(f"sample {self.key}: its json member cannot be used: {error}") from None
        return meta


class ShardSet:
    """A finished set as a sequence of :class:`Sample`, in shard order.

    Attributes:
        location: folder or URL of the set, as given.
        folder: folder of its indexes and manifest: ``location``, or the cache's copy of those of a remote set.
        manifest: its contents and origin.
        members: member names of every sample.
        sizes: number of samples of each shard.
        recordings: (m,) uint64, sorted: the ids of the recordings that its samples come from, as far as known.
        unknown_recordings: number of samples whose recording is not known.
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
            kind: the kind it must have; None: any.
            cache: where tars are copied to before they are read; None: they are read in place.
            open_tars: largest number of tars that this process keeps mapped; None: OPEN_TARS, or with a cache as many
                as fill half of it.

        Raises:
            UserError: there is no finished set, or it is not of ``kind``.
            DamagedSet: the set is damaged.
        """
        self.location = str(location)
        self._cache, self._open_tars = cache, open_tars
        self.folder = self._index_folder()
        try:
            self.manifest = Manifest.read(self.folder, kind)
        except UserError as error:
            if cache is None:
                raise
            # Name the location, not the folder that the indexes were copied to.
            raise type(error)(str(error).replace(str(self.folder), self.location)) from None
        if cache is not None and open_tars is None:
            largest = max((entry.bytes for entry in self.manifest.shards), default=1)
            self._open_tars = max(1, cache.limit // (2 * max(1, largest)))
        indexes = [self._read_index(number) for number in range(len(self.manifest.shards))]
        filled = [index for index in indexes if len(index)]
        self.members = filled[0].members if filled else []
        for index in filled:
            if index.members != self.members:
                names = f"{index.members}, other shards {self.members}"
                raise DamagedSet(f"{self.location}: {index.name} has members {names}")
        if filled and "json" not in self.members:
            raise DamagedSet(f"{self.location}: its samples have members {self.members}; json is missing")
        width = len(self.members)
        self.sizes = [len(index) for index in indexes]
        self._ends = np.cumsum(self.sizes, dtype=np.int64)  # (shards,)
        self._keys = np.array([key for index in indexes for key in index.keys], dtype=np.bytes_)  # (n,)
        self._crc32 = np.concatenate([np.empty(0, np.int64), *(index.crc32 for index in indexes)])  # (n,)
        self._spans = np.concatenate([np.empty((0, 2), np.int64), *(index.spans for index in filled)])  # (n, 2)
        ranges = (np.stack([index.offsets, index.offsets + index.sizes], axis=-1) for index in filled)
        self._ranges = np.concatenate([np.empty((0, width, 2), np.int64), *ranges])  # (n, m, 2): each member's
        of_samples = [index.recordings for index in indexes if index.recordings is not None]
        known = np.concatenate([np.empty(0, np.uint64), *of_samples])  # (n,)
        known = known[known != UNKNOWN]
        self.recordings, self.unknown_recordings = np.unique(known), len(self._keys) - len(known)
        self._open: OrderedDict[int, memoryview] = OrderedDict()  # mapped tars by shard, least recently used first

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index`` (0 ≤ index < len); raise DamagedSample if its checksum does not match."""
        return self.read([index])[0]

    def read(self, indices: Sequence[int]) -> list[Sample]:
        """Return the samples at ``indices``, in that order; raise DamagedSample if a checksum does not match."""
        rows = np.asarray(indices, np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"{self.location}: samples {indices}; the set has {len(self)}")
        shards = np.searchsorted(self._ends, rows, side="right").tolist()
        columns = (self._spans[rows], self._crc32[rows], self._keys[rows], self._ranges[rows])
        samples = []
        for shard, (start, end), crc32, key, ranges in zip(shards, *(c.tolist() for c in columns), strict=True):
            tar = self._tar(shard)
            # A tar that was cut short while it is mapped must not be touched beyond its end: that is SIGBUS.
            is_whole = end <= cast(mmap.mmap, tar.obj).size()
            if not is_whole or zlib.crc32(tar[start:end]) != crc32:
                what = (
                    "its bytes do not match their checksum" if is_whole else "its tar was cut short since it was opened"
                )
                name = self.manifest.shards[shard].name
                raise DamagedSample(f"{self.location}: sample {key.decode()} in {name}: {what}")
            members = {name: tar[first:last] for name, (first, last) in zip(self.members, ranges, strict=True)}
            samples.append(Sample(key.decode(), members))
        return samples

    @functools.cached_property
    def fingerprint(self) -> str:
        """The identity of the set's content: the sha256 (hex) over the sha256 of its tars, in order."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.manifest.shards).encode()).hexdigest()

    def key(self, index: int) -> str:
        """Return the key of sample ``index`` without reading it."""
        return self._keys[index].decode("ascii")

    def indices_with_key(self, key: str) -> list[int]:
        """Return the indices of the samples whose key is ``key``, in order; sets that were joined may have several."""
        first, last = (int(np.searchsorted(self._keys, key.encode(), side, self._by_key)) for side in ("left", "right"))
        return self._by_key[first:last].tolist()

    def indices_with_prefix(self, prefix: str) -> list[int]:
        """Return the indices of the samples whose key begins with ``prefix``, in the order of their keys."""
        ends = prefix.encode(), prefix.encode() + b"\x7f"  # keys are ASCII
        first, last = (int(np.searchsorted(self._keys, end, sorter=self._by_key)) for end in ends)
        return self._by_key[first:last].tolist()

    @functools.cached_property
    def _by_key(self) -> np.ndarray:
        """(n,) int64: the indices of the samples in the order of their keys."""
        return np.argsort(self._keys, kind="stable")

    def shard_range(self, shard: int) -> range:
        """Return the sample indices of shard number ``shard``."""
        return range(int(self._ends[shard - 1]) if shard else 0, int(self._ends[shard]))

    def shard_of(self, index: int) -> str:
        """Return the name of the shard that contains sample ``index``."""
        return self.manifest.shards[int(np.searchsorted(self._ends, index, side="right"))].name

    def indices_of_recordings(self, ids: np.ndarray) -> list[int]:
        """Return the indices of the samples that come from the recordings ``ids``, (m,) uint64; reads all indexes."""
        found: list[int] = []
        for shard in range(len(self.sizes)):
            of_samples = ShardIndex.read(self.folder, shard).recordings
            if of_samples is not None:
                found += (np.flatnonzero(np.isin(of_samples, ids)) + self.shard_range(shard).start).tolist()
        return found

    def stored_tar(self, shard: int) -> StoredTar:
        """Return location, size and sha256 of the tar of shard number ``shard``."""
        entry = self.manifest.shards[shard]
        return StoredTar(f"{self.location.rstrip('/')}/{entry.name}.tar", entry.bytes, entry.sha256)

    def close(self) -> None:
        """Release the mapped tars; reading maps them again."""
        self._open.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def _index_folder(self) -> Path:
        if not is_url(self.location):
            return Path(self.location)
        if self._cache is None:
            raise UserError(f"{self.location}: a set at a URL requires reading.stage=FOLDER, a folder on this machine")
        return self._cache.indexes(self.location)

    def _read_index(self, number: int) -> ShardIndex:
        entry = self.manifest.shards[number]
        index = ShardIndex.read(self.folder, number)
        if (len(index), index.bytes, index.sha256) != (entry.samples, entry.bytes, entry.sha256):
            raise DamagedSet(f"{self.location}/{index.name}.json: is the index of another set's {index.name}")
        if not is_url(self.location):
            index.check_tar(self.folder)
        return index

    def _tar(self, shard: int) -> memoryview:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        tar = self.stored_tar(shard)
        if len(self._open) >= (self._open_tars or OPEN_TARS):
            self._open.popitem(last=False)  # unmapped when its last sample is garbage-collected
        with self._opened(tar) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != tar.bytes:
                raise DamagedSet(f"{tar.url}: {tar.bytes:,} bytes expected, {size:,} found; it changed since opening")
            self._open[shard] = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        return self._open[shard]

    def _opened(self, tar: StoredTar) -> BinaryIO:
        if self._cache is not None:
            return self._cache.open(tar)
        try:
            return open(tar.url, "rb")
        except OSError as error:
            raise Outage(f"{tar.url}: cannot be read any more: {error.strerror}") from None
