"""The life of a shard set, whatever it holds: plan, shards, manifest, each step safe to stop at any instant.

A set is begun by writing its plan, which fixes what every shard will hold; shards can then be made in any order, each
on its own, and exist once their index does; the manifest comes last. Running again compares the plan, removes what a
stopped run left half done, makes only the missing shards, and so ends with the same bytes.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmldm_scale.errors import UserError
from mmldm_scale.files import ASIDE, sync, write_whole
from mmldm_scale.shards.files import DamagedSet, read_json, write_json
from mmldm_scale.shards.index import FORMAT, ShardIndex, shard_name
from mmldm_scale.shards.manifest import DROPPED, MANIFEST, PLAN, Kind, Manifest, ShardEntry


def read_plan(folder: Path, kind: Kind) -> dict[str, Any] | None:
    """Return the plan of the set begun in ``folder``, or None if the folder is still empty or missing.

    Raises:
        UserError: the folder holds other things, or a set of another kind or format.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; a new or empty folder fits as output")
    if not (folder / PLAN).exists():
        strange = [path.name for path in folder.iterdir() if not path.name.endswith(ASIDE)] if folder.exists() else []
        if strange:
            raise UserError(f"{folder}: holds other files ({min(strange)}, …); a new or empty folder fits as output")
        return None
    plan = read_json(folder / PLAN)
    if (plan.get("kind"), plan.get("format")) != (kind, FORMAT):
        raise UserError(
            f"{folder}: holds {plan.get('kind')} (format {plan.get('format')}), not {kind} (format {FORMAT}); "
            "give another output folder"
        )
    return plan


def write_plan(folder: Path, kind: Kind, plan: dict[str, Any]) -> None:
    """Begin a set: make ``folder`` and write its plan."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / PLAN, {"format": FORMAT, "kind": kind, **plan}, indent=1)


def missing_shards(folder: Path, count: int) -> list[int]:
    """Return the numbers of the shards (of ``count``) that do not exist yet, with all leftovers of theirs removed.

    A shard whose index or tar is damaged, by size, counts as missing and is removed, its index first.
    """
    for leftover in folder.glob(f"*{ASIDE}"):
        leftover.unlink()
    missing = []
    for number in range(count):
        try:
            ShardIndex.read(folder, number).check_tar(folder)
        except DamagedSet:
            missing.append(number)
    if missing:
        (folder / MANIFEST).unlink(missing_ok=True)  # a set with a shard missing is unfinished
    for number in missing:
        for suffix in (".json", ".tar"):
            (folder / f"{shard_name(number)}{suffix}").unlink(missing_ok=True)
    sync(folder)
    return missing


def finish(
    folder: Path, count: int, failed: list[dict[str, str]], describe: Callable[[list[ShardIndex]], dict[str, Any]]
) -> Manifest:
    """Write the drop log and the manifest of a set whose ``count`` shards all exist; return the manifest.

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
    write_whole(folder / DROPPED, "".join(json.dumps(row) + "\n" for row in dropped).encode("ascii"))
    manifest.write(folder)
    return manifest
