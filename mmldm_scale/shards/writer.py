"""Writing one shard: a plain tar whose bytes depend on nothing but its samples, then its index.

    with ShardWriter(folder, number) as shard:
        shard.add("cat_000000", {"00.jpg": jpeg, "wav": wave}, {"label": "cat"})
        shard.drop("cat_000016", "cat.mp4", "silent", "RMS -71.3 dB, below -60 dB")
        index = shard.commit()

Until :meth:`ShardWriter.commit` nothing stands under the shard's name; killed at any moment before, it leaves at most a
``.tmp`` file or a tar without index, which the next run removes.
"""

import hashlib
import json
import tarfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mmldm_scale.common.atomic_files import WholeFile
from mmldm_scale.shards.index import BLOCK, KEY, MEMBER, ShardIndex, padded, shard_name

_END = bytes(2 * BLOCK)  # of every tar


class ShardWriter:
    """Collects the samples and the drops of one shard; see the module's example."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder = folder
        self._name = shard_name(number)
        self._tar = WholeFile(folder / f"{self._name}.tar")
        self._digest = hashlib.sha256()
        self._members: list[str] = []
        self._rows: dict[str, tuple[int, list[int], list[int]]] = {}  # key: CRC-32, offsets, sizes
        self._dropped: list[dict[str, str]] = []

    def add(self, key: str, members: dict[str, bytes], meta: dict[str, Any]) -> None:
        """Append one sample; ``meta`` becomes its "json" member. All samples must have the same members.

        Raises:
            ValueError: the key is not a plain one or occurs twice, or the members differ from the first sample's.
        """
        members = {**members, "json": json.dumps(meta, allow_nan=False).encode("ascii")}
        self._check(key, list(members))
        start, offsets, blocks = self._tar.bytes, [], []
        for name, content in members.items():
            offsets.append(start + sum(map(len, blocks)) + BLOCK)
            blocks += [_header(f"{key}.{name}", len(content)), content, bytes(padded(len(content)) - len(content))]
        data = b"".join(blocks)
        self._write(data)
        self._rows[key] = (zlib.crc32(data), offsets, [len(content) for content in members.values()])

    def drop(self, key: str, path: str, reason: str, detail: str) -> None:
        """Record a candidate that gives no sample."""
        self._dropped.append({"key": key, "path": path, "reason": reason, "detail": detail})

    def commit(self, statistics: dict[str, Any] | None = None) -> ShardIndex:
        """Give the tar its name, then write the index: now the shard exists."""
        self._write(_END)
        shape = (len(self._rows), len(self._members))
        index = ShardIndex(
            name=self._name,
            bytes=self._tar.bytes,
            sha256=self._digest.hexdigest(),
            members=self._members,
            keys=list(self._rows),
            crc32=np.array([crc for crc, _, _ in self._rows.values()], np.int64),
            offsets=np.array([offsets for _, offsets, _ in self._rows.values()], np.int64).reshape(shape),
            sizes=np.array([sizes for _, _, sizes in self._rows.values()], np.int64).reshape(shape),
            dropped=self._dropped,
            statistics=statistics,
        )
        self._tar.commit()
        try:
            index.write(self._folder)
        except FileNotFoundError:  # another process has removed it, and makes the shard: the tar may be that one's
            raise
        except BaseException:
            self._tar.path.unlink()  # it would only take room until the next run removes it
            raise
        return index

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tar.__exit__(kind, error, trace)

    def _check(self, key: str, members: list[str]) -> None:
        if not KEY.fullmatch(key) or not all(MEMBER.fullmatch(name) for name in members):
            raise ValueError(f"{key!r} with members {members}: no plain names")
        if key in self._rows:
            raise ValueError(f"{key!r}: occurs twice")
        self._members = self._members or members
        if members != self._members:
            raise ValueError(f"{key!r}: has members {members}, the samples before it {self._members}")

    def _write(self, data: bytes) -> None:
        self._tar.write(data)
        self._digest.update(data)


def _header(name: str, size: int) -> bytes:
    """Return a tar header without owner or date, so that equal samples make equal tars."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
