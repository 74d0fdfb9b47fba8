"""Reading a finished set: any sample by its index, from memory-mapped tars, its checksum looked at each time.

``ShardSet(folder, "latents")[i]`` is a :class:`Sample`; ``shards.clips.decode_clip`` and
``shards.latents.decode_latents`` turn its members into arrays. Tars are mapped when a process first needs them, so a
set may be handed to loader workers. Truncated or swapped files are refused on opening; other damage raises
:class:`DamagedSample` when the sample is read, before anything uses it.
"""

import functools
import hashlib
import json
import mmap
import resource
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmldm_scale.shards.files import DamagedSet
from mmldm_scale.shards.index import ShardIndex
from mmldm_scale.shards.manifest import Kind, Manifest

_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
OPEN_TARS = 4096 if _FILES == resource.RLIM_INFINITY else _FILES // 2  # a mapped tar keeps a file descriptor


class DamagedSample(Exception):
    """A sample's bytes are not those that were written; the message names key, shard and set."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample: its key and its members ("json" included) as views of the mapped tar."""

    key: str
    members: dict[str, memoryview]

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        """The parsed "json" member: path, start, label, class, …"""
        try:
            return json.loads(str(self.members["json"], "utf-8"))
        except (ValueError, RecursionError) as error:
            raise DamagedSample(f"sample {self.key}: its json member is none: {error}") from None


class ShardSet:
    """A finished set as a sequence of :class:`Sample`, in shard order.

    Attributes:
        folder: the set's folder.
        manifest: what it holds and where it comes from.
    """

    def __init__(self, folder: str | Path, kind: Kind | None = None) -> None:
        """Open the set and check every shard's index, name and size.

        Raises:
            UserError: the folder holds no finished set, one of another ``kind``, or a damaged one (DamagedSet).
        """
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder, kind)
        indexes = [self._read_index(number) for number in range(len(self.manifest.shards))]
        filled = [index for index in indexes if len(index)]
        self.members = filled[0].members if filled else []
        for index in filled:
            if index.members != self.members:
                raise DamagedSet(f"{self.folder}: {index.name} has members {index.members}, others {self.members}")
        if filled and "json" not in self.members:
            raise DamagedSet(f"{self.folder}: its samples have members {self.members}, without json")
        width = len(self.members)
        self._ends = np.cumsum([len(index) for index in indexes], dtype=np.int64)  # (shards,)
        self._keys = np.array([key for index in indexes for key in index.keys], dtype=np.bytes_)  # (n,)
        self._crc32 = np.concatenate([np.empty(0, np.int64), *(index.crc32 for index in indexes)])  # (n,)
        self._spans = np.concatenate([np.empty((0, 2), np.int64), *(index.spans for index in filled)])  # (n, 2)
        self._offsets = np.concatenate([np.empty((0, width), np.int64), *(index.offsets for index in filled)])
        self._sizes = np.concatenate([np.empty((0, width), np.int64), *(index.sizes for index in filled)])
        self._open: OrderedDict[int, memoryview] = OrderedDict()  # mapped tars by shard, least recently used first

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index`` (0 ≤ index < len); raise DamagedSample if its checksum is not the one written."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: sample {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        tar = self._tar(shard)
        start, end = self._spans[index].tolist()
        if zlib.crc32(tar[start:end]) != self._crc32[index]:
            raise DamagedSample(f"{self._where(index, shard)}: its bytes do not match their checksum")
        places = zip(self.members, self._offsets[index].tolist(), self._sizes[index].tolist(), strict=True)
        members = {name: tar[offset : offset + size] for name, offset, size in places}
        return Sample(self.key(index), members)

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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def _read_index(self, number: int) -> ShardIndex:
        entry = self.manifest.shards[number]
        index = ShardIndex.read(self.folder, number)
        if (len(index), index.bytes, index.sha256) != (entry.samples, entry.bytes, entry.sha256):
            raise DamagedSet(f"{self.folder / index.name}.json: is not the index of this set's {index.name}")
        index.check_tar(self.folder)
        return index

    def _tar(self, shard: int) -> memoryview:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        entry = self.manifest.shards[shard]
        file = self.folder / f"{entry.name}.tar"
        with file.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        if len(mapped) != entry.bytes:
            raise DamagedSet(f"{file}: {entry.bytes:,} bytes expected, {len(mapped):,} found; it changed since opening")
        self._open[shard] = memoryview(mapped)
        if len(self._open) > OPEN_TARS:
            self._open.popitem(last=False)  # unmapped when the last sample that views it is gone
        return self._open[shard]

    def _where(self, index: int, shard: int) -> str:
        return f"{self.folder}: sample {self.key(index)} in {self.manifest.shards[shard].name}"
