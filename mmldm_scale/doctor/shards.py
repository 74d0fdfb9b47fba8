"""Checks of a shard set: that it is complete, random tars against their sha256, and the rate of reading samples."""

import hashlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np

from mmldm_scale.common import rng
from mmldm_scale.common.addresses import is_url
from mmldm_scale.common.errors import UserError
from mmldm_scale.doctor.findings import Finding
from mmldm_scale.shards.json_files import DamagedSet
from mmldm_scale.shards.manifest import MANIFEST, Manifest, ShardEntry
from mmldm_scale.shards.reader import DamagedSample, ShardSet

REPAIR = "copy it again, or `python data_tools/shard.py repair`"
CHUNK = 4 << 20  # bytes read at once
BATCH = 16  # samples read at once


def check_set(location: str, rank: int, seconds: float) -> Iterator[Finding]:
    """Check the set at ``location`` for about ``seconds``; other ranks, and later calls, check other tars."""
    try:
        manifest = _manifest(location)
        for warning in manifest.media.audio_image_warnings:
            yield Finding("warning", "audio image", f"{location}: {warning}", "cut the clips again")
        if is_url(location):
            yield Finding("ok", "shards", f"{location}: {manifest.samples:,} samples in {len(manifest.shards)} tars")
            return
        problems = _size_problems(Path(location), manifest)
        for problem in problems[:3]:
            yield Finding("error", "shards", problem, REPAIR)
        if len(problems) > 3:
            yield Finding("error", "shards", f"{location}: {len(problems) - 3} more tars have a wrong size", REPAIR)
        if problems or not manifest.samples:
            return
        random = rng.generator(rank, "doctor/shards", int(time.time()))
        hashed = _check_hashes(Path(location), manifest, random, seconds / 2)
        rate = _read_rate(location, random, seconds / 2)
    except (DamagedSet, DamagedSample) as error:
        yield Finding("error", "shards", str(error), REPAIR)
        return
    except UserError as error:
        yield Finding("error", "shards", str(error))
        return
    sizes = f"{manifest.samples:,} samples in {len(manifest.shards)} tars of the right size"
    yield Finding("ok", "shards", f"{location}: {sizes}, {hashed}; {rate:,.0f} samples/s at random")


def _manifest(location: str) -> Manifest:
    if not is_url(location):
        return Manifest.read(location)
    try:
        with fsspec.open(f"{location.rstrip('/')}/{MANIFEST}", "rb") as source:
            content = source.read()
    except Exception as error:  # remote file systems have no common base class for what goes wrong
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{location}: cannot be reached: {reason}") from None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST).write_bytes(content)
        return Manifest.read(folder)


def _with_tar(manifest: Manifest) -> list[ShardEntry]:
    """Return the shards that have a tar: all that hold samples."""
    return [entry for entry in manifest.shards if entry.bytes]


def _size_problems(folder: Path, manifest: Manifest) -> list[str]:
    """Return a message for each tar that is missing or has a wrong size."""
    problems = []
    for entry in _with_tar(manifest):
        tar = folder / f"{entry.name}.tar"
        size = tar.stat().st_size if tar.is_file() else None
        if size is None:
            problems.append(f"{tar}: missing")
        elif size != entry.bytes:
            problems.append(f"{tar}: {entry.bytes:,} bytes expected, {size:,} found")
    return problems


def _check_hashes(folder: Path, manifest: Manifest, random: np.random.Generator, seconds: float) -> str:
    """Compare random tars with their sha256 for ``seconds``; return how many, and how fast, in words.

    Raises:
        DamagedSet: the content of a tar differs from its sha256.
    """
    began, total, complete = time.monotonic(), 0, 0
    entries = _with_tar(manifest)
    for number in random.permutation(len(entries)):
        entry, digest = entries[number], hashlib.sha256()
        with (folder / f"{entry.name}.tar").open("rb") as tar:
            while chunk := tar.read(CHUNK):
                digest.update(chunk)
                total += len(chunk)
                if time.monotonic() - began > seconds:
                    break
            else:
                if digest.hexdigest() != entry.sha256:
                    raise DamagedSet(f"{tar.name}: its content does not match its sha256; the file is damaged")
                complete += 1
                continue
        break
    rate = total / max(time.monotonic() - began, 1e-6) / 1e6
    return f"{complete} match their sha256, read at {rate:,.0f} MB/s"


def _read_rate(location: str, random: np.random.Generator, seconds: float) -> float:
    """Return the samples per second that this process reads in random order, checksums included.

    Raises:
        DamagedSet, DamagedSample: data differs from its checksum.
    """
    samples = ShardSet(location)
    began, count = time.monotonic(), 0
    while (taken := time.monotonic() - began) < seconds or not count:
        samples.read(random.integers(len(samples), size=BATCH).tolist())
        count += BATCH
    samples.close()
    return count / max(taken, 1e-6)
