"""Where runs go: room for their checkpoints, the right to write, and the file system's clock."""

import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from mmldm_scale.doctor.findings import Finding

GIB = 2**30
SPARE = 4 * GIB  # for logs, previews and what else a run writes
INODES = 10_000
SKEW, TOO_MUCH = 2.0, 30.0  # seconds; a dead job's lock is told by a minute of silence


def disk(run: Path, checkpoint: int, kept: int) -> Iterator[Finding]:
    """Look for room in ``run`` for ``kept`` checkpoints of ``checkpoint`` bytes and one that is being written."""
    folder = _existing(run)
    found = os.statvfs(folder)
    free, there = found.f_bavail * found.f_frsize, sum(_sizes(run))
    needed = max(checkpoint, (kept + 1) * checkpoint - there) + SPARE
    text = f"{free / GIB:,.1f} GiB free in {folder}"
    if checkpoint:
        text += f", checkpoints of {checkpoint / GIB:.3g} GiB"
    if free < needed:
        level = "trouble" if free < checkpoint + SPARE / 8 else "warning"
        remedy = f"{needed / GIB:,.1f} GiB fit, or another run="
        yield Finding(level, "disk", text, remedy)
    elif found.f_files and found.f_favail < INODES:
        yield Finding("warning", "disk", f"room for only {found.f_favail:,} more files in {folder}", "remove some")
    else:
        yield Finding("ok", "disk", text)


def newest_checkpoint(run: Path) -> int:
    """Return the bytes of the newest checkpoint of ``run``; 0 without one."""
    sizes = _sizes(run)
    return sizes[-1] if sizes else 0


def _sizes(run: Path) -> list[int]:
    folders = sorted(run.glob("checkpoints/step-*[0-9]"))
    return [sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in folders]


def clock_and_rights(run: Path) -> Iterator[Finding]:
    """Write a file where ``run`` goes and compare its time, which a file server sets, with this machine's."""
    folder = _existing(run)
    probe = folder / f".doctor-{secrets.token_hex(4)}"
    try:
        probe.write_bytes(b"?")
    except OSError as error:
        yield Finding("trouble", "run folder", f"{folder}: cannot be written: {error.strerror}", "another run= fits")
        return
    try:
        skew = probe.stat().st_mtime - _now()
    finally:
        probe.unlink()
    if abs(skew) > SKEW:
        level = "trouble" if abs(skew) > TOO_MUCH else "warning"
        text = f"{folder}: its file system's clock is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}"
        yield Finding(level, "run folder", text, "have the clocks set (NTP)")
    else:
        yield Finding("ok", "run folder", f"{folder} can be written, its clock is right")


def _existing(folder: Path) -> Path:
    """Return ``folder``, or the nearest above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _now() -> float:
    return time.time()  # a line of its own, so that a test can set the clock wrong
