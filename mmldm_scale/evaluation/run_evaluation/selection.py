"""Which checkpoints of a run are evaluated, and their weights, which stay when the training removes the checkpoint."""

import hashlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from mmldm_scale.common.atomic_files import full_disk
from mmldm_scale.common.errors import UserError
from mmldm_scale.models import pretrained

WEIGHTS = "weights"  # in a checkpoint, and in the folder in which it is evaluated


class CheckpointRemoved(Exception):
    """The training has removed the checkpoint before its weights were kept."""


def select(available: Collection[int], evaluated: Collection[int], every: int | None, finished: bool) -> list[int]:
    """Return those of the ``available`` checkpoints (samples seen) that are to be evaluated, in order.

    Args:
        evaluated: those that are evaluated already.
        every: of the checkpoints from one multiple of this many samples to the next, only the first is evaluated;
            None: all.
        finished: whether the run is: its last checkpoint is evaluated in any case.
    """
    chosen = []
    taken = {samples // every for samples in evaluated} if every else set()
    for samples in sorted(set(available) - set(evaluated)):
        if not every:
            chosen.append(samples)
        elif samples >= every and samples // every not in taken:
            taken.add(samples // every)
            chosen.append(samples)
    last = max(available, default=0)
    return chosen if not finished or not available or last in {*evaluated, *chosen} else [*chosen, last]


def identity(weights: Path) -> str:
    """Return what distinguishes the weights folder ``weights`` from others, in hex.

    Raises:
        CheckpointRemoved: it is no longer there.
    """
    try:
        if (weights / pretrained.SUMS).is_file():
            return hashlib.sha256((weights / pretrained.SUMS).read_bytes()).hexdigest()
        if not (weights / pretrained.WEIGHTS).is_file():
            raise CheckpointRemoved
        return pretrained.fingerprint(weights)
    except FileNotFoundError:
        raise CheckpointRemoved from None


def keep_weights(checkpoint: Path, kept: Path) -> None:
    """Make ``kept`` a weights folder of the same content as that of ``checkpoint``, whole or not at all.

    Where the file system can, files are linked, which takes no space while the checkpoint is there.

    Raises:
        CheckpointRemoved: the checkpoint is not there, or only partly.
        UserError: its weights are damaged, or the disk is full.
    """
    weights, temporary = checkpoint / WEIGHTS, kept.with_name(f"{kept.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        before = identity(weights)
        with full_disk(kept):
            temporary.mkdir(parents=True)
            _link_files(weights, temporary)
        pretrained.verify(temporary)
        if identity(temporary) != before:
            raise CheckpointRemoved
        os.rename(temporary, kept)
    except (CheckpointRemoved, FileNotFoundError, UserError):
        if _is_whole(weights):
            raise
        raise CheckpointRemoved from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link_files(source: Path, target: Path) -> None:
    for file in sorted(file for file in source.rglob("*") if file.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, place)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without links
            shutil.copy2(file, place)


def _is_whole(weights: Path) -> bool:
    """Return whether no file of the weights folder is missing."""
    try:
        names = [line.split("  ", 1)[-1] for line in (weights / pretrained.SUMS).read_text().splitlines()]
    except OSError:
        names = [pretrained.CONFIG, pretrained.WEIGHTS]
    return all((weights / name).is_file() for name in names)
