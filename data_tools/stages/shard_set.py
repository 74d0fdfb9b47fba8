"""Begins and finishes a shard set of any kind: plan, shards, manifest; each step may be stopped at any moment.

A set is begun by writing its plan, which fixes what every shard will hold. Shards are made in any order, each on its
own, and exist once their index does. The manifest comes last. Running again compares the plan, removes what a
stopped run left half done, makes only the missing shards, and so ends with the same bytes. Any number of processes may
do so at once: each takes a lease on what it makes, and all of them return when the set is finished.
"""

import contextlib
import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmldm_scale.common.atomic_files import TEMPORARY_SUFFIX, sync, write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import LEASES, Leases
from mmldm_scale.shards.index import FORMAT, ShardIndex, shard_name
from mmldm_scale.shards.json_files import DamagedSet, read_json, write_json
from mmldm_scale.shards.manifest import DROPPED, MANIFEST, PLAN, Manifest, ShardEntry

from ..launching.progress import Progress
from .share_out import POLL, share_out

REPORT_SECONDS = 5.0  # of waiting for another process, until a message says so


def read_plan(folder: Path, kind: str) -> dict[str, Any] | None:
    """Return the plan of the set begun in ``folder``, or None if the folder is still empty or missing.

    Raises:
        UserError: the folder holds other things, or a set of another kind or format.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a new or empty folder as output")
    if not (folder / PLAN).exists():
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
        foreign = [name for name in names if name != LEASES and not name.endswith(TEMPORARY_SUFFIX)]
        if foreign:
            raise UserError(f"{folder}: holds other files ({min(foreign)}, …); give a new or empty folder as output")
        return None
    plan = read_json(folder / PLAN)
    if (plan.get("kind"), plan.get("format")) != (kind, FORMAT):
        raise UserError(
            f"{folder}: holds {plan.get('kind')} (format {plan.get('format')}), not {kind} (format {FORMAT}); "
            "give another output folder"
        )
    return plan


def begin(folder: Path, kind: str, leases: Leases, plan: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], bool]:
    """Return the plan of the set in ``folder`` and whether it was begun just now, with what ``plan`` returned.

    Of several processes that begin a set together, one calls ``plan``, and the others wait for it.

    Raises: as :func:`read_plan`, and what ``plan`` raises.
    """
    began, reported = time.monotonic(), False
    while (stored := read_plan(folder, kind)) is None:
        with _held(leases, "plan") as ours:
            if not ours and not reported and time.monotonic() - began > REPORT_SECONDS:
                print(f"{folder}: another process is making the plan; waiting for it", file=sys.stderr, flush=True)
                reported = True
            if ours and read_plan(folder, kind) is None:
                value = {"format": FORMAT, "kind": kind, **plan()}
                write_json(folder / PLAN, value, indent=1)
                return value, True
    return stored, False


def missing_shards(folder: Path, sizes: Sequence[int], leases: Leases, bar: Progress) -> Iterator[Iterator[int]]:
    """Yield iterators over the numbers of shards to make, until all of them exist; see :func:`leases.share_out`.

    What a stopped run left of a shard is removed when an iterator comes to it.

    Args:
        sizes: candidates of each shard.
    """
    names = [shard_name(number) for number in range(len(sizes))]
    for numbers in share_out(names, sizes, functools.partial(_whole, folder), leases, bar):
        yield (_cleared(folder, number) for number in numbers)


def _cleared(folder: Path, number: int) -> int:
    name = shard_name(number)
    (folder / MANIFEST).unlink(missing_ok=True)  # a set with a shard missing is unfinished
    for leftover in (f"{name}.json", f"{name}.tar"):  # the index first: without it there is no shard
        (folder / leftover).unlink(missing_ok=True)
    remove_asides(folder, name)
    return number


def _whole(folder: Path, number: int) -> bool:
    """Return whether shard ``number`` exists: its index is valid, and its tar has the size that the index states."""
    try:
        ShardIndex.read(folder, number).check_tar(folder)
    except DamagedSet:
        return False
    return True


def remove_asides(folder: Path, name: str) -> None:
    """Remove what killed processes left of files whose name begins with ``name``."""
    for leftover in folder.glob(f"{name}*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)
    sync(folder)


@contextlib.contextmanager
def _held(leases: Leases, name: str) -> Iterator[bool]:
    """Hold the lease ``name`` in the block and give True; if somebody else holds it, wait a moment and give False."""
    ours = leases.take(name)
    try:
        if not ours:
            time.sleep(POLL)
        yield ours
    finally:
        if ours:
            leases.release(name)


def finish(
    folder: Path,
    count: int,
    leases: Leases,
    failed: list[dict[str, str]],
    describe: Callable[[list[ShardIndex]], dict[str, Any]],
) -> Manifest:
    """Write the drop log and the manifest of a set whose ``count`` shards all exist; return the manifest.

    Every process that made the set does so, one after the other, with the same result.

    Args:
        failed: drop rows of files that gave no candidate, which no shard knows of.
        describe: returns the Manifest's fields that depend on what the set holds, given all indexes.

    Raises:
        RuntimeError: samples and drops do not add up to candidates and failed files.
    """
    indexes = [ShardIndex.read(folder, number) for number in range(count)]
    dropped = [*failed, *(row for index in indexes for row in index.dropped)]
    manifest = Manifest(
        samples=sum(map(len, indexes)),
        dropped=len(dropped),
        reasons=dict(Counter(sorted(row["reason"] for row in dropped)).most_common()),
        failed_files=len(failed),
        shards=[ShardEntry.of(index) for index in indexes],
        **describe(indexes),
    )
    if manifest.samples + manifest.dropped != manifest.candidates + manifest.failed_files:
        raise RuntimeError(
            f"{folder}: {manifest.samples} samples + {manifest.dropped} dropped do not add up to "
            f"{manifest.candidates} candidates + {manifest.failed_files} failed files"
        )
    while True:
        with _held(leases, "finish") as ours:
            if ours:
                leases.clear()
                remove_asides(folder, "")
                write_whole(folder / DROPPED, "".join(json.dumps(row) + "\n" for row in dropped).encode("ascii"))
                manifest.write(folder)
                return manifest
