"""A shard set: whether all of it is there, a few tars byte by byte, and how fast samples are read."""

import hashlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np

from mmldm_scale.common import rng
from mmldm_scale.common.errors import UserError
from mmldm_scale.doctor.findings import Finding
from mmldm_scale.shards.json_files import DamagedSet
from mmldm_scale.shards.manifest import MANIFEST, Manifest
from mmldm_scale.shards.reader import DamagedSample, ShardSet
from mmldm_scale.shards.remote.remote import is_url

REPAIR = "copy it again, or `python data_tools/shard.py repair`"
CHUNK = 4 << 20  # bytes read at once
BATCH = 16  # samples


def look(location: str, rank: int, seconds: float) -> Iterator[Finding]:
    """Look at the set at ``location``, for about ``seconds``; other ranks, and later calls, look at other tars."""
    try:
        manifest = _manifest(location)
        if is_url(location):
            yield Finding("ok", "shards", f"{location}: {manifest.samples:,} samples in {len(manifest.shards)} tars")
            return
        wrong = _sizes(Path(location), manifest)
        for problem in wrong[:3]:
            yield Finding("trouble", "shards", problem, REPAIR)
        if len(wrong) > 3:
            yield Finding("trouble", "shards", f"{location}: {len(wrong) - 3} tars more are of a wrong size", REPAIR)
        if wrong or not manifest.samples:
            return
        random = rng.generator(rank, "doctor/shards", int(time.time()))
        hashed = _hash(Path(location), manifest, random, seconds / 2)
        speed = _read(location, random, seconds / 2)
    except (DamagedSet, DamagedSample) as error:
        yield Finding("trouble", "shards", str(error), REPAIR)
        return
    except UserError as error:
        yield Finding("trouble", "shards", str(error))
        return
    sizes = f"{manifest.samples:,} samples in {len(manifest.shards)} tars of the right size"
    yield Finding("ok", "shards", f"{location}: {sizes}, {hashed}; {speed:,.0f} samples/s at random")


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


def _sizes(folder: Path, manifest: Manifest) -> list[str]:
    """Return what is wrong with the tars' sizes."""
    wrong = []
    for entry in manifest.shards:
        tar = folder / f"{entry.name}.tar"
        found = tar.stat().st_size if tar.is_file() else None
        if found is None:
            wrong.append(f"{tar}: missing")
        elif found != entry.bytes:
            wrong.append(f"{tar}: {entry.bytes:,} bytes expected, {found:,} found")
    return wrong


def _hash(folder: Path, manifest: Manifest, random: np.random.Generator, seconds: float) -> str:
    """Hold random tars against their sha256 until the time is up; say how many and how fast.

    Raises:
        DamagedSet: one is not what was written.
    """
    began, total, whole = time.monotonic(), 0, 0
    for number in random.permutation(len(manifest.shards)):
        entry, digest = manifest.shards[number], hashlib.sha256()
        with (folder / f"{entry.name}.tar").open("rb") as tar:
            while chunk := tar.read(CHUNK):
                digest.update(chunk)
                total += len(chunk)
                if time.monotonic() - began > seconds:
                    break
            else:
                if digest.hexdigest() != entry.sha256:
                    raise DamagedSet(f"{tar.name}: its content does not match its sha256; the file is damaged")
                whole += 1
                continue
        break
    rate = total / max(time.monotonic() - began, 1e-6) / 1e6
    return f"{whole} read whole and unchanged at {rate:,.0f} MB/s"


def _read(location: str, random: np.random.Generator, seconds: float) -> float:
    """Return how many samples a second this process reads at random, checksums included.

    Raises:
        DamagedSet, DamagedSample: something is not what was written.
    """
    samples = ShardSet(location)
    began, count = time.monotonic(), 0
    while (taken := time.monotonic() - began) < seconds or not count:
        samples.read(random.integers(len(samples), size=BATCH).tolist())
        count += BATCH
    samples.close()
    return count / max(taken, 1e-6)
