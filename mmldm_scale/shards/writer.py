"""Writing one shard: a plain tar whose bytes depend only on its samples, then its index.

    with ShardWriter(folder, number) as shard:
        shard.add("cat_000000", {"00.jpg": jpeg, "wav": wave}, {"label": "cat"})
        shard.drop("cat_000016", "cat.mp4", "silent", "RMS -71.3 dB, below -60 dB")
        index = shard.commit()

Before :meth:`ShardWriter.commit` no file has the shard's name. A process killed at any time leaves at most a ``.tmp``
file or a tar without index, which the next run removes.
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
from mmldm_scale.shards.recordings import recording_id

_END = bytes(2 * BLOCK)  # two empty blocks end a tar


class ShardWriter:
    """Writes the samples of one shard and records dropped candidates; see the module's example."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder = folder
        self._name = shard_name(number)
        self._tar = WholeFile(folder / f"{self._name}.tar")
        self._digest = hashlib.sha256()
        self._members: list[str] = []
        self._rows: dict[str, tuple[int, list[int], list[int]]] = {}  # key: CRC-32, offsets, sizes
        self._recordings: list[int] = []
        self._dropped: list[dict[str, str]] = []

    def add(self, key: str, members: dict[str, bytes], meta: dict[str, Any]) -> None:
        """Append one sample; ``meta`` becomes its "json" member. All samples must have the same members.

        Raises:
            ValueError: the key does not match KEY or repeats, or the members differ from the first sample's.
        """
        members = {**members, "json": json.dumps(meta, allow_nan=False).encode("ascii")}
        self._check(key, list(members))
        offsets: list[int] = []
        blocks: list[bytes] = []
        for name, content in members.items():
            offsets.append(self._tar.bytes + sum(len(block) for block in blocks) + BLOCK)
            blocks += [_header(f"{key}.{name}", len(content)), content, bytes(padded(len(content)) - len(content))]
        data = b"".join(blocks)
        self._write(data)
        self._rows[key] = (zlib.crc32(data), offsets, [len(content) for content in members.values()])
        self._recordings.append(recording_id(meta))

    def drop(self, key: str, path: str, reason: str, detail: str) -> None:
        """Record a candidate that does not become a sample."""
        self._dropped.append({"key": key, "path": path, "reason": reason, "detail": detail})

    def commit(self, statistics: dict[str, Any] | None = None) -> ShardIndex:
        """Rename the tar to its final name, then write the index, which makes the shard exist; return the index.

        A shard without samples has an index alone: readers of WebDatasets refuse an empty tar.

        Args:
            statistics: latents: the sums over the shard's samples, to be stored in the index.
        """
        if self._rows:
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
            recordings=np.array(self._recordings, np.uint64),
            statistics=statistics,
        )
        if self._rows:
            self._tar.commit()
        try:
            index.write(self._folder)
        except FileNotFoundError:  # another process took over this shard, and the tar may be its own
            raise
        except BaseException:
            self._tar.path.unlink(missing_ok=True)  # without an index it would occupy the disk until the next run
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
            raise ValueError(f"key {key!r} or member names {members} do not match {KEY.pattern} and {MEMBER.pattern}")
        if key in self._rows:
            raise ValueError(f"key {key!r} repeats")
        self._members = self._members or members
        if members != self._members:
            raise ValueError(f"{key!r}: has members {members}; earlier samples have {self._members}")

    def _write(self, data: bytes) -> None:
        self._tar.write(data)
        self._digest.update(data)


def _header(name: str, size: int) -> bytes:
    """Return a tar header without owner or date, so that equal samples give equal tars."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
