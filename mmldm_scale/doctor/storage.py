"""Checks of the run folder: free space for checkpoints, the permission to write, and the file system's clock."""

import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from mmldm_scale.common.atomic_files import full_disk_reason
from mmldm_scale.common.checkpoint_folders import find_checkpoints
from mmldm_scale.doctor.findings import Finding, Level

GIB = 2**30
SPARE = 4 * GIB  # bytes for logs, previews and other files of a run
INODES = 10_000  # files that a run may create
SKEW_WARNING, SKEW_ERROR = 2.0, 30.0  # seconds; a lock without a renewal for a minute counts as a dead job's


def disk(run: Path, checkpoint_bytes: int, keep_checkpoints: int) -> Iterator[Finding]:
    """Check the free space for ``keep_checkpoints`` checkpoints and one that is being written."""
    folder = _existing(run)
    volume = os.statvfs(folder)
    free, used = volume.f_bavail * volume.f_frsize, sum(_sizes(run))
    needed = max(checkpoint_bytes, (keep_checkpoints + 1) * checkpoint_bytes - used) + SPARE
    text = f"{free / GIB:,.1f} GiB free in {folder}"
    if checkpoint_bytes:
        text += f", checkpoints of {checkpoint_bytes / GIB:.3g} GiB"
    if free < needed:
        level: Level = "error" if free < checkpoint_bytes + SPARE / 8 else "warning"
        remedy = f"{needed / GIB:,.1f} GiB are needed; free some or give another run="
        yield Finding(level, "disk", text, remedy)
    elif volume.f_files and volume.f_favail < INODES:
        text = f"only {volume.f_favail:,} more files can be created in {folder}"
        yield Finding("warning", "disk", text, "remove files")
    else:
        yield Finding("ok", "disk", text)


def newest_checkpoint(run: Path) -> int:
    """Return the size of the newest checkpoint of ``run``, in bytes; 0 without one."""
    sizes = _sizes(run)
    return sizes[-1] if sizes else 0


def _sizes(run: Path) -> list[int]:
    return [
        sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        for folder in find_checkpoints(run).values()
    ]


def clock_and_permission(run: Path) -> Iterator[Finding]:
    """Write a file in the run folder and compare its time, which a file server sets, with this machine's clock."""
    folder = _existing(run)
    probe = folder / f".doctor-{secrets.token_hex(4)}"
    try:
        probe.write_bytes(b"?")
    except OSError as error:
        full = full_disk_reason(error)
        remedy = "remove files or give another run=" if full else "give another run="
        yield Finding("error", "run folder", f"{folder}: cannot be written: {full or error.strerror}", remedy)
        return
    try:
        skew = probe.stat().st_mtime - _now()
    finally:
        probe.unlink()
    if abs(skew) > SKEW_WARNING:
        level: Level = "error" if abs(skew) > SKEW_ERROR else "warning"
        text = f"{folder}: its file system's clock is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}"
        yield Finding(level, "run folder", text, "synchronise the clocks (NTP)")
    else:
        yield Finding("ok", "run folder", f"{folder} can be written; its clock agrees")


def _existing(folder: Path) -> Path:
    """Return ``folder``, or its nearest parent that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _now() -> float:
    return time.time()  # a function of its own, which a test replaces
