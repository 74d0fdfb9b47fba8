"""The index of one shard: where each sample lies in the tar, its checksum, and what was dropped on the way.

``shard-000000.json`` describes ``shard-000000.tar``. Samples are columns, not objects, so that a set of 100,000 opens
in a moment. Every sample of a shard has the same members in the same order, and they follow one another in the tar
without a gap, each behind its 512-byte header and padded to 512 bytes; a sample's CRC-32 covers that whole stretch,
headers and so names included.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmldm_scale.shards.json_files import DamagedSet, read_json, write_json

FORMAT = 1
BLOCK = 512  # bytes of a tar block
KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")  # with a member's name it fits a plain tar header of 100 characters
DROP_COLUMNS = ("key", "path", "reason", "detail")
MEMBER = re.compile(r"[a-z0-9_]{1,12}(\.[a-z0-9_]{1,6})?")


def shard_name(number: int) -> str:
    """Return the name, without suffix, of shard ``number``."""
    return f"shard-{number:06d}"


def padded(size: int | np.ndarray) -> int | np.ndarray:
    """Return ``size`` in bytes rounded up to whole tar blocks."""
    return -(-size // BLOCK) * BLOCK


@dataclass(eq=False)
class ShardIndex:
    """What is known about one shard of n samples with m members each.

    Attributes:
        name: ``shard-000000``; the tar is ``name`` + ``.tar``.
        bytes, sha256: of the whole tar.
        members: the m member names ("00.jpg", "wav", "json", …) in the order they lie in the tar.
        keys: the n sample keys in the order they lie in the tar.
        crc32: (n,) int64, over each sample's stretch of the tar, from its first header to its last padding.
        offsets, sizes: (n, m) int64, of each member's content, in bytes.
        dropped: one row for each candidate left out: key, path, reason, detail.
        statistics: sums over the shard's samples that the set's statistics are made of; latent shards only.
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
    statistics: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def spans(self) -> np.ndarray:
        """(n, 2) int64: where each sample's stretch of the tar begins and ends, in bytes."""
        if not self.keys:
            return np.zeros((0, 2), np.int64)
        ends = self.offsets[:, -1] + padded(self.sizes[:, -1])
        return np.stack([self.offsets[:, 0] - BLOCK, ends], axis=1)

    def write(self, folder: Path) -> None:
        """Write ``folder/name.json``, whole or not at all: from here on the shard exists."""
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
            "statistics": self.statistics,
        }
        write_json(folder / f"{self.name}.json", value)

    @classmethod
    def read(cls, folder: Path, number: int) -> "ShardIndex":
        """Read and check the index of shard ``number``; raise DamagedSet if it is missing or contradicts itself."""
        file = folder / f"{shard_name(number)}.json"
        value = read_json(file)
        if value.get("format") != FORMAT:
            raise DamagedSet(f"{file}: format {value.get('format')!r}; this version reads {FORMAT}")
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
                statistics=value["statistics"],
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DamagedSet(f"{file}: no index of a shard: {type(error).__name__}: {str(error)[:200]}") from None
        problem = index._problem(shard_name(number))
        if problem:
            raise DamagedSet(f"{file}: {problem}")
        return index

    def check_tar(self, folder: Path) -> None:
        """Raise DamagedSet if the tar is missing or its size is not the one written down here."""
        file = folder / f"{self.name}.tar"
        found = file.stat().st_size if file.is_file() else None
        if found is None:
            raise DamagedSet(f"{file}: missing, though its index is there")
        if found != self.bytes:
            raise DamagedSet(f"{file}: {self.bytes:,} bytes expected, {found:,} found; the file is damaged")

    def _problem(self, name: str) -> str | None:
        if self.name != name:
            return f"is the index of {self.name!r}, not of {name}"
        if not all(MEMBER.fullmatch(member) for member in self.members) or len(set(self.members)) < len(self.members):
            return f"member names {self.members} are not ours"
        if not all(KEY.fullmatch(key) for key in self.keys) or len(set(self.keys)) < len(self.keys):
            return "a key occurs twice or is not made of letters, digits, '_' and '-'"
        if self.keys and not self._contiguous():
            return "offsets and sizes contradict each other"
        return None

    def _contiguous(self) -> bool:
        if not self.members or self.sizes.min() < 0 or self.sizes.max() > self.bytes:
            return False
        ends = (self.offsets + padded(self.sizes)).reshape(-1)
        begins = self.offsets.reshape(-1) - BLOCK
        return bool(begins[0] == 0 and np.array_equal(begins[1:], ends[:-1]) and ends[-1] <= self.bytes)
