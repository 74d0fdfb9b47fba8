"""The folders of a run's checkpoints: ``runs/NAME/checkpoints/step-000000001024``, named by the samples seen.

    find_checkpoints(run)         # {1024: Path("runs/NAME/checkpoints/step-000000001024"), …}
    checkpoint_folder(run, 2048)  # where the checkpoint at 2,048 samples belongs
    newest_saved(run)             # "step-000000001024", even if the folder checkpoints/ is gone

Only a folder with exactly such a name is a checkpoint of the run: ``step-….tmp`` is incomplete, and what somebody has
copied to another name is theirs. The file ``runs/NAME/newest_checkpoint`` names the checkpoint that was saved last: a
run that has it but no checkpoint has lost them, or their disk is not mounted.
"""

import re
from pathlib import Path

from mmldm_scale.common.atomic_files import write_whole

FOLDER, NEWEST = "checkpoints", "newest_checkpoint"  # in the run folder
_NAME = re.compile(r"step-(\d{12,})", re.ASCII)


def checkpoint_folder(run: Path, samples_seen: int) -> Path:
    """Return the folder of the checkpoint of ``run`` at ``samples_seen``."""
    return run / FOLDER / f"step-{samples_seen:012d}"


def find_checkpoints(run: Path) -> dict[int, Path]:
    """Return the checkpoint folders of ``run`` by the samples seen, the oldest first; none if there is no such run."""
    names = {path: _NAME.fullmatch(path.name) for path in (run / FOLDER).glob("step-*")}
    found = {int(match[1]): path for path, match in names.items() if match and path.is_dir()}
    return dict(sorted(found.items()))


def record_saved(run: Path, samples_seen: int) -> None:
    """Record that the checkpoint at ``samples_seen`` is complete; raise OSError or, on a full disk, UserError."""
    write_whole(run / NEWEST, f"{checkpoint_folder(run, samples_seen).name}\n".encode())


def newest_saved(run: Path) -> str | None:
    """Return the name of the checkpoint of ``run`` that was saved last, whether it is still there; None: none was."""
    file = run / NEWEST
    return file.read_text(errors="replace").strip()[:80] if file.is_file() else None
