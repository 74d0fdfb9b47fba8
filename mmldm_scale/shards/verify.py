"""Verifying a whole set: ``verify_set(folder)`` tests every checksum, member, shape and count and lists all faults.

Tars are read with the standard library's ``tarfile``, not through the index, so that the two are compared.
"""

import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.media.clip import MediaError
from mmldm_scale.shards.clips import clip_modalities, decode_clip
from mmldm_scale.shards.index import ShardIndex
from mmldm_scale.shards.json_files import DamagedSet
from mmldm_scale.shards.latents import PARTS, LatentSample, Sums, decode_latents, parts_of, statistics, sums
from mmldm_scale.shards.manifest import DROPPED, MANIFEST, PLAN, Manifest, ShardEntry
from mmldm_scale.shards.recordings import recording_id

Members = dict[str, bytes]


@dataclass(frozen=True)
class Findings:
    """Faults of a set.

    Attributes:
        faults: one line each; empty if the set is intact.
        shards: the numbers of the shards that have faults.
    """

    faults: list[str]
    shards: list[int]


@dataclass(frozen=True)
class _Checked:
    """Result of reading one shard: its faults and, if it could be read, its index and the sums over its latents."""

    faults: list[str]
    index: ShardIndex | None = None
    sums: Sums = field(default_factory=dict)


def verify_set(
    folder: str | Path,
    progress: Callable[[int], object] = lambda samples: None,
    run: Callable[[Callable, Iterable], Iterable] = map,
) -> Findings:
    """Return all faults of the set in ``folder``.

    Args:
        folder: the set's folder.
        progress: called with the number of samples verified since the last call.
        run: maps a function over shard numbers and returns the results in order, as ``map`` does; for a process that
            crashed or timed out it may return a MediaError.

    Raises:
        UserError: the folder contains no finished set with a readable manifest.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    faults: list[str] = []
    shards: list[int] = []
    indexes: list[ShardIndex] = []  # of the shards that could be read
    latent_sums: list[Sums] = []
    keys: set[str] = set()
    for number, checked in enumerate(run(_Checker(folder, manifest), range(len(manifest.shards)))):
        entry = manifest.shards[number]
        if isinstance(checked, MediaError):
            checked = _Checked([f"{entry.name}: {checked}"])
        shard_faults = list(checked.faults)
        if checked.index is not None:
            repeated = sorted(keys.intersection(checked.index.keys))
            shard_faults += [f"{entry.name}: sample {key} is in an earlier shard too" for key in repeated]
            keys.update(checked.index.keys)
            indexes.append(checked.index)
            latent_sums.append(checked.sums)
        if shard_faults:
            shards.append(number)
        faults += shard_faults
        progress(entry.samples)
    if len(indexes) == len(manifest.shards):
        faults += _log_faults(folder, manifest, indexes)
        if manifest.kind == "latents" and manifest.statistics != statistics(latent_sums):
            faults.append(f"{MANIFEST}: its statistics differ from those of the samples")
    return Findings(faults + _unknown_files(folder, manifest), shards)


@dataclass(frozen=True)
class _Checker:
    """Verifies one shard, given its number; can be sent to other processes."""

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


def shard_faults(folder: Path, manifest: Manifest, index: ShardIndex) -> list[str]:
    """Return the faults of the one shard that ``index`` describes, of a set with ``manifest``.

    Raises:
        DamagedSet: it cannot be read.
    """
    return _check_shard(folder, manifest, ShardEntry.of(index), index)[0]


def _check_shard(folder: Path, manifest: Manifest, entry: ShardEntry, index: ShardIndex) -> tuple[list[str], Sums]:
    """Return the faults of one shard and the sums over its latents; raise DamagedSet if it cannot be read."""
    tar = folder / f"{entry.name}.tar"
    index.check_tar(folder)
    indexed = ShardEntry.of(index)
    faults = [] if entry == indexed else [f"the index has {indexed}, the manifest {entry}"]
    keys: list[str] = []
    recordings: list[int] = []
    latents: list[LatentSample] = []
    if not index.bytes:  # everything was dropped, and there is no tar
        return faults, sums(latents)
    try:
        if sha256(tar) != index.sha256:
            faults.append("the tar's sha256 differs from the one in its index")
        with tar.open("rb") as stream:
            faults += _checksum_faults(stream, index)
        for key, members in _samples(tar):
            keys.append(key)
            try:
                latents += _check_sample(manifest, index, members)
                recordings.append(recording_id(json.loads(members["json"])))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                faults.append(f"sample {key}: {error}")
    except (OSError, tarfile.TarError) as error:
        raise DamagedSet(f"{tar}: cannot be read to its end: {error}") from None
    if keys != index.keys:
        faults.append(f"the {len(keys)} samples of the tar differ from the {len(index)} of the index")
    elif not faults and index.recordings is not None and recordings != index.recordings.tolist():
        faults.append("the recordings in its index differ from those of its samples")
    part = sums(latents)
    if manifest.kind == "latents" and index.statistics != part:
        faults.append("the sums in its index differ from those of its samples")
    return faults, part


def _checksum_faults(stream: BinaryIO, index: ShardIndex) -> Iterator[str]:
    for key, crc, (start, end) in zip(index.keys, index.crc32.tolist(), index.spans.tolist(), strict=True):
        stream.seek(start)
        if zlib.crc32(stream.read(end - start)) != crc:
            yield f"sample {key}: its bytes do not match their checksum"


def _samples(tar: Path) -> Iterator[tuple[str, Members]]:
    """Yield (key, members) of each sample, in tar order."""
    key: str | None = None
    members: Members = {}
    with tarfile.open(tar, "r:") as archive:
        for info in archive:
            name, _, member = info.name.partition(".")
            if name != key:
                if key is not None:
                    yield key, members
                key, members = name, {}
            content = archive.extractfile(info) if info.isreg() and not info.issparse() else None
            if content is None:
                raise tarfile.TarError(f"{info.name} is not a regular file")
            members[member] = content.read()
    if key is not None:
        yield key, members


def _check_sample(manifest: Manifest, index: ShardIndex, members: Members) -> list[LatentSample]:
    """Return the sample's latents ([] for clips and samples); raise ValueError if it does not match the manifest."""
    if list(members) != index.members:
        raise ValueError(f"has members {list(members)}; its index has {index.members}")
    if manifest.kind == "samples":
        decode_clip(members, media=manifest.media, modalities=clip_modalities(members))
        return []
    label = json.loads(members["json"])["class"]
    if label is not None and not 0 <= label < len(manifest.classes):
        raise ValueError(f"class is {label}; must be at least 0 and below {len(manifest.classes)}")
    if manifest.kind == "clips":
        decode_clip(members, media=manifest.media)
        return []
    sample = decode_latents(members)
    if list(sample.parts) != parts_of(manifest.shapes):
        raise ValueError(f"has latents of {', '.join(sample.parts)}; expected {', '.join(parts_of(manifest.shapes))}")
    for part, (mean, _) in sample.parts.items():
        shape = manifest.shapes[PARTS[part]]
        if mean.shape != shape:
            raise ValueError(f"{part}_mean has shape {mean.shape}; expected {shape}")
    return [sample]


def _log_faults(folder: Path, manifest: Manifest, indexes: list[ShardIndex]) -> Iterator[str]:
    dropped = [row for index in indexes for row in index.dropped]
    try:
        rows = [json.loads(line) for line in (folder / DROPPED).read_text("ascii").splitlines()]
    except (OSError, ValueError) as error:
        yield f"{DROPPED}: cannot be read: {error}"
    else:
        if len(rows) != manifest.dropped:
            yield f"{DROPPED}: {len(rows)} rows, but the manifest counts {manifest.dropped}"
        if rows[len(rows) - len(dropped) :] != dropped:
            yield f"{DROPPED}: its rows differ from those of the indexes"
    if manifest.dropped != len(dropped) + manifest.failed_files:
        inside = f"{len(dropped)} in the indexes + {manifest.failed_files} failed files"
        yield f"{MANIFEST}: {manifest.dropped} dropped, but {inside}"


def _unknown_files(folder: Path, manifest: Manifest) -> list[str]:
    tars = {f"{entry.name}.tar" for entry in manifest.shards if entry.bytes}
    known = tars | {f"{entry.name}.json" for entry in manifest.shards} | {MANIFEST, DROPPED, PLAN}
    return [f"{path.name}: does not belong to the set" for path in sorted(folder.iterdir()) if path.name not in known]
