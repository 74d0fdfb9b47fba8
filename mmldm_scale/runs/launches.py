"""``RUN/launch-N/jobs.json``: which SLURM job trains which run of a ``mmldm launch``.

The folder ``RUN`` is that of the run, or with ``--sweep`` the one that its runs lie in. ``mmldm launch`` writes the
file; ``mmldm status`` finds by it runs whose jobs have not begun.
"""

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmldm_scale.common.atomic_files import write_whole

JOBS = "jobs.json"
_FOLDER = re.compile(r"launch-(\d+)")


@dataclass(frozen=True)
class Launch:
    """A run's job.

    Attributes:
        job: SLURM's id of it, "17" or "17_3".
        submitted: Unix time.
        config: the run's configuration.
    """

    job: str
    submitted: float
    config: Path


def write(folder: Path, jobs: Mapping[str, str]) -> None:
    """Record in ``folder`` the job of each run, by the run's name; that of a run without a sweep is ""."""
    write_whole(folder / JOBS, json.dumps(jobs).encode() + b"\n")


def is_launch(folder: Path) -> bool:
    """Return whether ``folder`` is that of a launch, not of a run; it holds a config.yaml as a run's does."""
    return bool(_FOLDER.fullmatch(folder.name)) and ((folder / JOBS).is_file() or (folder / "code").is_dir())


def runs_below(folder: Path) -> list[Path]:
    """Return the folders of the runs that were launched in ``folder``, itself or a sweep's; they may not exist."""
    names = {name for launch in _folders(folder) for name in _read(launch)}
    return [folder / name if name else folder for name in sorted(names)]


def last_launch(run: Path) -> Launch | None:
    """Return the last launch of ``run``; None if there is none."""
    for base, name in ((run, ""), (run.parent, run.name)):
        for folder in reversed(_folders(base)):
            job = _read(folder).get(name)
            if job is not None:
                return Launch(job, (folder / JOBS).stat().st_mtime, folder / f"{name or 'config'}.yaml")
    return None


def _folders(base: Path) -> list[Path]:
    """Return the folders of launches in ``base``, oldest first."""
    numbered = [(int(match[1]), path) for path in base.glob("launch-*") if (match := _FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


def _read(folder: Path) -> dict[str, str]:
    """Return the job of each run; {} if the file is missing or damaged. A name that leads elsewhere is left out."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads((folder / JOBS).read_text())
        if isinstance(value, dict):
            return {name: str(job) for name, job in value.items() if name in ("", Path(name).name) and name != ".."}
    return {}
