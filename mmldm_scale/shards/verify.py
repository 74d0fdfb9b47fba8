"""Re-reading a whole set: every checksum, member, shape, number and count, each fault named.

Tars are walked with the standard library's ``tarfile``, not through the index, so that the two are held against each
other. ``verify_set`` never stops at the first fault, and never raises for one.
"""

import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.media.clip import MediaError
from mmldm_scale.shards.clips import decode_clip
from mmldm_scale.shards.index import ShardIndex
from mmldm_scale.shards.json_files import DamagedSet
from mmldm_scale.shards.latents import LatentSample, Sums, decode_latents, statistics, sums
from mmldm_scale.shards.manifest import DROPPED, MANIFEST, PLAN, Manifest, ShardEntry

Members = dict[str, bytes]


@dataclass(frozen=True)
class Findings:
    """What is wrong with a set: ``faults``, one line each, and the numbers of the ``shards`` that have some."""

    faults: list[str]
    shards: list[int]


@dataclass(frozen=True)
class _Checked:
    """What reading one shard through gave: its faults, and where it could be read its index and its latents' sums."""

    faults: list[str]
    index: ShardIndex | None = None
    sums: Sums = field(default_factory=dict)


def verify_set(
    folder: str | Path,
    progress: Callable[[int], object] = lambda samples: None,
    run: Callable[[Callable, Iterable], Iterable] = map,
) -> Findings:
    """Return every fault found in the set in ``folder``; none means that the set is whole.

    Args:
        progress: called with the number of samples done since the last call.
        run: what calls a function on every shard and gives the results in order; by default ``map``.

    Raises:
        UserError: the folder holds no finished set with a readable manifest.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    faults: list[str] = []
    shards: list[int] = []
    whole: list[_Checked] = []
    keys: set[str] = set()
    for number, checked in enumerate(run(_Checker(folder, manifest), range(len(manifest.shards)))):
        entry = manifest.shards[number]
        if isinstance(checked, MediaError):  # the process that looked at it died or hung
            checked = _Checked([f"{entry.name}: {checked}"])
        found = checked.faults
        if checked.index is not None:
            twice = sorted(keys.intersection(checked.index.keys))
            found = found + [f"{entry.name}: sample {key} is in an earlier shard too" for key in twice]
            keys.update(checked.index.keys)
            whole.append(checked)
        if found:
            shards.append(number)
        faults += found
        progress(entry.samples)
    if len(whole) == len(manifest.shards):
        faults += _log_faults(folder, manifest, [checked.index for checked in whole])
        if manifest.kind == "latents" and manifest.statistics != statistics(checked.sums for checked in whole):
            faults.append(f"{MANIFEST}: its statistics are not those of the samples")
    return Findings(faults + _stray_files(folder, manifest), shards)


@dataclass(frozen=True)
class _Checker:
    """Reads one shard after the other through."""

    folder: Path
    manifest: Manifest

    def __call__(self, number: int) -> _Checked:
        entry = self.manifest.shards[number]
        try:
            index = ShardIndex.read(self.folder, number)
            faults, part = _check_shard(self.folder, self.manifest, entry, index)
        except DamagedSet as error:
            return _Checked([str(error)])
        return _Checked([f"{entry.name}: {fault}" for fault in faults], index, part)


def _check_shard(folder: Path, manifest: Manifest, entry: ShardEntry, index: ShardIndex) -> tuple[list[str], Sums]:
    """Return the faults of one shard and the sums over its latents; raise DamagedSet if it cannot be read through."""
    tar = folder / f"{entry.name}.tar"
    index.check_tar(folder)
    faults = [] if entry == ShardEntry.of(index) else [f"the index knows {ShardEntry.of(index)}, the manifest {entry}"]
    keys, latents = [], []
    try:
        if sha256(tar) != index.sha256:
            faults.append("the tar's sha256 is not the one in its index")
        with tar.open("rb") as stream:
            faults += _stretch_faults(stream, index)
        for key, members in _walk(tar):
            keys.append(key)
            try:
                latents += _check_sample(manifest, index, members)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                faults.append(f"sample {key}: {error}")
    except (OSError, tarfile.TarError) as error:
        raise DamagedSet(f"{tar}: cannot be read through: {error}") from None
    if keys != index.keys:
        faults.append(f"{len(keys)} samples in the tar are not the {len(index)} of the index, in its order")
    part = sums(latents)
    if manifest.kind == "latents" and index.statistics != part:
        faults.append("the sums in its index are not those of its samples")
    return faults, part


def _stretch_faults(stream: BinaryIO, index: ShardIndex) -> Iterator[str]:
    for key, crc, (start, end) in zip(index.keys, index.crc32.tolist(), index.spans.tolist(), strict=True):
        stream.seek(start)
        if zlib.crc32(stream.read(end - start)) != crc:
            yield f"sample {key}: its bytes do not match their checksum"


def _walk(tar: Path) -> Iterator[tuple[str, Members]]:
    """Yield (key, members) as they follow one another in the tar."""
    key, members = None, {}
    with tarfile.open(tar, "r:") as archive:
        for info in archive:
            name, _, member = info.name.partition(".")
            if name != key:
                if key is not None:
                    yield key, members
                key, members = name, {}
            if not info.isreg() or info.issparse():
                raise tarfile.TarError(f"{info.name} is no plain file")
            members[member] = archive.extractfile(info).read()
    if key is not None:
        yield key, members


def _check_sample(manifest: Manifest, index: ShardIndex, members: Members) -> list[LatentSample]:
    """Raise ValueError if the sample is not what the manifest says; return its latents, if it holds any."""
    if list(members) != index.members:
        raise ValueError(f"has members {list(members)}, its index says {index.members}")
    label = json.loads(members["json"])["class"]
    if label is not None and not 0 <= label < len(manifest.classes):
        raise ValueError(f"class {label} of {len(manifest.classes)}")
    if manifest.kind == "clips":
        decode_clip(members, media=manifest.media)
        return []
    sample = decode_latents(members)
    for name, array in vars(sample).items():
        shape = manifest.audio_shape if name.startswith("audio") else manifest.video_shape
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, {shape} is expected")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinity")
    return [sample]


def _log_faults(folder: Path, manifest: Manifest, indexes: list[ShardIndex]) -> Iterator[str]:
    dropped = [row for index in indexes for row in index.dropped]
    try:
        rows = [json.loads(line) for line in (folder / DROPPED).read_text("ascii").splitlines()]
    except (OSError, ValueError) as error:
        yield f"{DROPPED}: cannot be read: {error}"
    else:
        if len(rows) != manifest.dropped:
            yield f"{DROPPED}: {len(rows)} rows, the manifest counts {manifest.dropped}"
        if rows[len(rows) - len(dropped) :] != dropped:
            yield f"{DROPPED}: its rows are not those of the indexes"
    if manifest.dropped != len(dropped) + manifest.failed_files:
        inside = f"{len(dropped)} in the indexes + {manifest.failed_files} failed files"
        yield f"{MANIFEST}: {manifest.dropped} dropped, but {inside}"


def _stray_files(folder: Path, manifest: Manifest) -> list[str]:
    shards = {f"{entry.name}.{suffix}" for entry in manifest.shards for suffix in ("tar", "json")}
    known = shards | {MANIFEST, DROPPED, PLAN}
    return [f"{path.name}: does not belong to the set" for path in sorted(folder.iterdir()) if path.name not in known]
