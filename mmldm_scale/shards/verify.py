"""Re-reading a whole set: every checksum, member, shape, number and count, each fault named.

Tars are walked with the standard library's ``tarfile``, not through the index, so that the two are held against each
other. ``verify_set`` never stops at the first fault, and never raises for one.
"""

import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mmldm_scale.errors import UserError
from mmldm_scale.shards.clips import decode_clip
from mmldm_scale.shards.files import DamagedSet
from mmldm_scale.shards.index import ShardIndex
from mmldm_scale.shards.latents import Sums, decode_latents, statistics, sums
from mmldm_scale.shards.manifest import DROPPED, MANIFEST, PLAN, Manifest, ShardEntry

Members = dict[str, bytes]


def verify_set(folder: str | Path, progress: Callable[[int], object] = lambda samples: None) -> list[str]:
    """Return every fault found in the set in ``folder``, one line each; none means that the set is whole.

    Args:
        progress: called with the number of samples done since the last call.

    Raises:
        UserError: the folder holds no finished set with a readable manifest.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    faults, indexes, keys = [], [], set()
    for number, entry in enumerate(manifest.shards):
        try:
            index = ShardIndex.read(folder, number)
        except UserError as error:
            faults.append(str(error))
            progress(entry.samples)
            continue
        indexes.append(index)
        faults += [f"{entry.name}: {fault}" for fault in _shard_faults(folder, manifest, entry, index)]
        faults += [f"{entry.name}: sample {key} is in an earlier shard too" for key in keys.intersection(index.keys)]
        keys.update(index.keys)
        progress(entry.samples)
    if len(indexes) == len(manifest.shards):
        faults += _set_faults(folder, manifest, indexes)
    return faults + _stray_files(folder, manifest)


def _shard_faults(folder: Path, manifest: Manifest, entry: ShardEntry, index: ShardIndex) -> Iterator[str]:
    tar = folder / f"{entry.name}.tar"
    if entry != ShardEntry.of(index):
        yield f"the index knows {ShardEntry.of(index)}, the manifest {entry}"
    try:
        index.check_tar(folder)
        with tar.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != index.sha256:
                yield "the tar's sha256 is not the one in its index"
            yield from _stretch_faults(stream, index)
        samples = dict(_walk(tar))
    except (DamagedSet, OSError, tarfile.TarError) as error:
        yield f"cannot be read through: {error}"
        return
    if list(samples) != index.keys:
        yield f"{len(samples)} samples in the tar are not the {len(index)} of the index, in its order"
    totals = []
    for key, members in samples.items():
        if list(members) != index.members:
            yield f"sample {key} has members {list(members)}, its index says {index.members}"
            continue
        try:
            totals += _check_sample(manifest, members)
        except (ValueError, KeyError, TypeError) as error:
            yield f"sample {key}: {error}"
    if manifest.kind == "latents" and index.statistics != sums(totals):
        yield "the sums for the set's statistics are not those of its samples"


def _stretch_faults(stream, index: ShardIndex) -> Iterator[str]:
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
            content = archive.extractfile(info)
            members[member] = content.read() if content else b""
    if key is not None:
        yield key, members


def _check_sample(manifest: Manifest, members: Members) -> list:
    """Raise ValueError if the sample is not what the manifest says; return its latents, if it holds any."""
    label = json.loads(members["json"])["class"]
    if label is not None and not 0 <= label < len(manifest.classes):
        raise ValueError(f"class {label} of {len(manifest.classes)}")
    if manifest.kind == "clips":
        media, clip = manifest.media, decode_clip(members)
        shapes = (clip.frames.shape, clip.waveform.shape)
        expected = ((media.frames, media.size, media.size, 3), (media.audio_samples,))
        if shapes != expected:
            raise ValueError(f"frames and waveform have shapes {shapes}, {expected} are expected")
        return []
    sample = decode_latents(members)
    for name, array in vars(sample).items():
        shape = manifest.audio_shape if name.startswith("audio") else manifest.video_shape
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, {shape} is expected")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinity")
    return [sample]


def _set_faults(folder: Path, manifest: Manifest, indexes: list[ShardIndex]) -> Iterator[str]:
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
    parts: list[Sums] = [index.statistics for index in indexes if index.statistics]
    if manifest.kind == "latents" and manifest.statistics != statistics(parts):
        yield f"{MANIFEST}: its statistics are not those of the shards"


def _stray_files(folder: Path, manifest: Manifest) -> list[str]:
    shards = {f"{entry.name}.{suffix}" for entry in manifest.shards for suffix in ("tar", "json")}
    known = shards | {MANIFEST, DROPPED, PLAN}
    return [f"{path.name}: does not belong to the set" for path in sorted(folder.iterdir()) if path.name not in known]
