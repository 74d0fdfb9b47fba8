"""What of a run was sent to a tracker: ``runs/NAME/trackers/TRACKER.json``, whole or absent.

It holds the run's id at the tracker, which is drawn and written before the tracker is asked for the first time: so a
run folder has one run there, however often the follower is killed. It also holds how far records and media were sent.
"""

import json
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.runs import run_log
from mmldm_scale.shards.json_files import check_types

FOLDER = "trackers"  # in the run folder


@dataclass
class Position:
    """The content of the file.

    Attributes:
        id: of the run at the tracker.
        project: to which it belongs there.
        started: Unix time of the training's first start: another training in the same folder has another.
        samples_seen: of the last record that was sent; -1: none was.
        preview: samples seen of the last preview of which anything was sent; -1: none was.
        preview_tags: what of that preview was sent.
    """

    id: str
    project: str
    started: float
    samples_seen: int = -1
    preview: int = -1
    preview_tags: list[str] = field(default_factory=list)

    def has_medium(self, samples_seen: int, tag: str) -> bool:
        """Return whether the medium ``tag`` of the preview at ``samples_seen`` was sent."""
        return samples_seen < self.preview or (samples_seen == self.preview and tag in self.preview_tags)

    def add_medium(self, samples_seen: int, tag: str) -> None:
        """Note that the medium ``tag`` of the preview at ``samples_seen`` was sent."""
        before = self.preview_tags if samples_seen == self.preview else []
        self.preview, self.preview_tags = samples_seen, [*before, tag]


def position_file(run: Path, tracker: str) -> Path:
    """Return the file of the position of ``run`` at ``tracker``."""
    return run / FOLDER / f"{tracker}.json"


def open_position(run: Path, tracker: str, project: str | None, first: run_log.Record) -> Position:
    """Return the position of ``run`` at ``tracker``, a new one if there is none.

    Args:
        project: as the user names it; None: the one of before, or "mmldm".
        first: the first record of the log.

    Raises:
        UserError: the file is damaged, is of another training, or names another project.
    """
    file = position_file(run, tracker)
    started: float = first.get(run_log.FIRST_START) or first["time"]
    if not file.exists():
        position = Position(secrets.token_hex(8), project or "mmldm", started)
        save_position(run, tracker, position)
        return position
    try:
        position = Position(**json.loads(file.read_text()))
        check_types(position)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read: {' '.join(str(error).split())[:200]}") from None
    if position.started != started:
        raise UserError(f"{file}: is of another training in this folder; remove the file to begin another run there")
    if project not in (None, position.project):
        raise UserError(f"--project: {file} has sent to project {position.project!r}; leave the option out")
    return position


def save_position(run: Path, tracker: str, position: Position) -> None:
    """Write ``position``; raise OSError or, on a full disk, UserError."""
    file = position_file(run, tracker)
    file.parent.mkdir(exist_ok=True)
    write_whole(file, json.dumps(asdict(position), indent=2).encode() + b"\n")
