"""What a tracker is: the contract between ``mmldm follow`` and the adapters, each in a file beside this one.

An adapter is a function ``open_run(run: TrackedRun) -> Tracker``. What :class:`Tracker` has to do is little, since the
follower keeps the position: every record and medium reaches an adapter once, in the order of the samples seen.

Many trackers hold in memory what they are given: only after ``flush`` is the position written. After a follower was
killed, what came since the last ``flush`` is handed over once more. A call may raise

- :class:`~mmldm_scale.common.errors.Outage` or OSError: the same call may succeed later, and is made again;
- :class:`~mmldm_scale.common.errors.UserError`: it cannot succeed; the user is told and the command ends.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmldm_scale.runs.media_reader import Medium


@dataclass(frozen=True)
class TrackedRun:
    """The run to create at the tracker, or to resume if it is there.

    Attributes:
        id: 16 hexadecimal digits, always the same for one run folder and tracker.
        name: to show: the name of the run folder.
        project: to which the run belongs.
        config: the content of config.yaml.
        folder: an existing folder, for files that the tracker keeps on this machine.
    """

    id: str
    name: str
    project: str
    config: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class Scalars:
    """One record of the log: ``values`` by tag, logged at the Unix time ``time`` after ``samples_seen`` samples."""

    samples_seen: int
    time: float
    values: dict[str, float]


class Tracker(Protocol):
    """An open run at a tracker.

    Attributes:
        place: where the run is shown, for the user: an address, or a command.
        samples_seen: of the last record that the tracker has, -1 if it has none; None: it cannot tell. What a killed
            follower had sent without noting it, is thus not sent again.
    """

    place: str
    samples_seen: int | None

    def log(self, records: Sequence[Scalars]) -> None:
        """Send ``records``, in order."""

    def show(self, medium: Medium) -> None:
        """Send ``medium``, whose files the next one replaces."""

    def flush(self) -> None:
        """Return when what was sent is no longer lost if this process is killed."""

    def close(self) -> None:
        """Wait until everything has arrived, and leave the run."""


OpenRun = Callable[[TrackedRun], Tracker]
