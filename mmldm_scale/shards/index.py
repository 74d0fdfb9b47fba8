"""The index of one shard: offset and checksum of each sample in the tar, and the candidates that were dropped.

``shard-000000.json`` describes ``shard-000000.tar``. It stores columns instead of one object per sample, so that a set
of 100,000 opens quickly. All samples of a shard have the same members in the same order. They lie in the tar without
gaps, each behind its 512-byte header and padded to 512 bytes. A sample's CRC-32 covers this whole span, headers (and so
names) included.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mmldm_scale.shards.json_files import DamagedSet, read_json, write_json

FORMAT = 1  # version of index and manifest files
BLOCK = 512  # bytes of a tar block
KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")  # key + "." + member name fits the 100 characters of a plain tar header
MEMBER = re.compile(r"[a-z0-9_]{1,12}(\.[a-z0-9_]{1,6})?")
DROP_COLUMNS = ("key", "path", "reason", "detail")

Size = TypeVar("Size", int, np.ndarray)


def shard_name(number: int) -> str:
    """Return the name, without suffix, of shard ``number``."""
    return f"shard-{number:06d}"


def padded(size: Size) -> Size:
    """Return ``size`` (bytes) rounded up to whole tar blocks."""
    return -(-size // BLOCK) * BLOCK


@dataclass(eq=False)
class ShardIndex:
    """The index of one shard of n samples with m members each.

    Attributes:
        name: ``shard-000000``; the tar is ``name`` + ``.tar``.
        bytes, sha256: size and hash (hex) of the whole tar; 0 and the hash of nothing if there is no tar.
        members: the m member names ("00.jpg", "wav", "json", …) in tar order.
        keys: the n sample keys in tar order.
        crc32: (n,) int64, over each sample's span of the tar, from its first header to its last padding.
        offsets, sizes: (n, m) int64, offset and size in bytes of each member's content in the tar.
        dropped: one row per dropped candidate: key, path, reason, detail.
        recordings: (n,) uint64, ids of the samples' recordings (:mod:`.recordings`); None: of an earlier version.
        statistics: latent shards: sums over the samples, from which the set's statistics are computed.
    """

    name: str
    bytes: int
    sha256: str
    members: list[str]
    keys: list[str]
    crc32: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    dropped: list[dict[str, str]] = field(default_factory=list)
    recordings: np.ndarray | None = None
    statistics: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def spans(self) -> np.ndarray:
        """(n, 2) int64: begin and end of each sample's span of the tar, in bytes."""
        if not self.keys:
            return np.zeros((0, 2), np.int64)
        ends = self.offsets[:, -1] + padded(self.sizes[:, -1])
        return np.stack([self.offsets[:, 0] - BLOCK, ends], axis=1)

    def write(self, folder: Path) -> None:
        """Write ``folder/name.json`` atomically; the shard exists from then on."""
        value = {
            "format": FORMAT,
            "name": self.name,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "members": self.members,
            "keys": self.keys,
            "crc32": self.crc32.tolist(),
            "offsets": self.offsets.tolist(),
            "sizes": self.sizes.tolist(),
            "dropped": self.dropped,
            "recordings": None
            if self.recordings is None
            else [f"{number:016x}" for number in self.recordings.tolist()],
            "statistics": self.statistics,
        }
        write_json(folder / f"{self.name}.json", value)

    @classmethod
    def read(cls, folder: Path, number: int) -> "ShardIndex":
        """Read and check the index of shard ``number``; raise DamagedSet if it is missing or contradicts itself."""
        file = folder / f"{shard_name(number)}.json"
        value = read_json(file)
        if value.get("format") != FORMAT:
            raise DamagedSet(f"{file}: format is {value.get('format')!r}; this version reads format {FORMAT}")
        try:
            count, width = len(value["keys"]), len(value["members"])
            index = cls(
                name=value["name"],
                bytes=int(value["bytes"]),
                sha256=str(value["sha256"]),
                members=[str(name) for name in value["members"]],
                keys=[str(key) for key in value["keys"]],
                crc32=np.array(value["crc32"], np.int64).reshape(count),
                offsets=np.array(value["offsets"], np.int64).reshape(count, width),
                sizes=np.array(value["sizes"], np.int64).reshape(count, width),
                dropped=[{column: str(row[column]) for column in DROP_COLUMNS} for row in value["dropped"]],
                recordings=_read_recordings(value.get("recordings"), count),
                statistics=value["statistics"],
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DamagedSet(f"{file}: not a shard index: {type(error).__name__}: {str(error)[:200]}") from None
        problem = index._problem(shard_name(number))
        if problem:
            raise DamagedSet(f"{file}: {problem}")
        return index

    def check_tar(self, folder: Path) -> None:
        """Raise DamagedSet if the tar is missing or its size differs from ``bytes``; a shard of 0 bytes has no tar."""
        if not self.bytes:
            return
        file = folder / f"{self.name}.tar"
        if not file.is_file():
            raise DamagedSet(f"{file}: is missing, but its index exists")
        size = file.stat().st_size
        if size != self.bytes:
            raise DamagedSet(f"{file}: {self.bytes:,} bytes expected, {size:,} found; the file is damaged")

    def _problem(self, name: str) -> str | None:
        if self.name != name:
            return f"is the index of {self.name!r} instead of {name}"
        if not all(MEMBER.fullmatch(member) for member in self.members) or len(set(self.members)) < len(self.members):
            return f"member names {self.members} repeat or do not match {MEMBER.pattern}"
        if not all(KEY.fullmatch(key) for key in self.keys) or len(set(self.keys)) < len(self.keys):
            return f"a key repeats or does not match {KEY.pattern}"
        if self.keys and not self.bytes:
            return "has samples, but its tar has 0 bytes"
        if self.keys and not self._contiguous():
            return "offsets and sizes are inconsistent"
        return None

    def _contiguous(self) -> bool:
        if not self.members or self.sizes.min() < 0 or self.sizes.max() > self.bytes:
            return False
        ends = (self.offsets + padded(self.sizes)).reshape(-1)
        begins = self.offsets.reshape(-1) - BLOCK
        return bool(begins[0] == 0 and np.array_equal(begins[1:], ends[:-1]) and ends[-1] <= self.bytes)


def _read_recordings(ids: list[str] | None, count: int) -> np.ndarray | None:
    """Return the ids, of 16 hex digits each; raise ValueError, OverflowError or TypeError if they are not ``count``."""
    return None if ids is None else np.array([int(text, 16) for text in ids], np.uint64).reshape(count)
