"""A tracker in memory, which can fail: ``TRACKERS["fake"] = "tests.support.fake_tracker:FakeRun"``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mmldm_scale.runs.media_reader import Medium
from mmldm_scale.trackers.contract import Scalars, TrackedRun


@dataclass
class Stored:
    """What the tracker has of a run."""

    run: TrackedRun
    records: list[Scalars] = field(default_factory=list)
    media: list[tuple[int, str, str, bytes, bool]] = field(default_factory=list)  # with whether it has sound apart
    opened: int = 0
    closed: int = 0


RUNS: dict[str, Stored] = {}  # by id
FAULTS: list[Callable[[], None]] = []  # called, one for each call of log, after the records are stored


class FakeRun:
    """A run of the tracker in memory."""

    place = "in memory"

    def __init__(self, run: TrackedRun) -> None:
        self._stored = RUNS.setdefault(run.id, Stored(run))
        self._stored.opened += 1
        self.samples_seen = max((record.samples_seen for record in self._stored.records), default=-1)

    def log(self, records: Sequence[Scalars]) -> None:
        if FAULTS and FAULTS[0].__name__ == "before":
            FAULTS.pop(0)()
        self._stored.records += records
        if FAULTS and FAULTS[0].__name__ != "flush":
            FAULTS.pop(0)()

    def show(self, medium: Medium) -> None:
        data, sound = medium.file.read_bytes(), medium.sound is not None
        self._stored.media.append((medium.samples_seen, medium.tag, medium.kind, data, sound))

    def flush(self) -> None:
        """Store what was sent, unless a fault of the name "flush" ends the process before."""
        if FAULTS and FAULTS[0].__name__ == "flush":
            FAULTS.pop(0)()

    def close(self) -> None:
        self._stored.closed += 1
