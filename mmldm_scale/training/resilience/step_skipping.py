"""Which optimizer steps are not taken, when a run goes back, and which data it leaves out from then on.

:class:`Health` judges each step before the optimizer takes it. A step with a loss or gradient that is not finite is
skipped on all processes: its samples count as seen, and nothing is learned from them. So is one whose loss or gradient
norm is a spike, if that is asked for. After ``skip_limit`` in a row the run goes back to its last checkpoint, and
:class:`SkippedRanges` has it read on behind the data of that time.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.shards.json_files import check_types

WINDOW = 64  # steps taken whose median a spike is held against; before so many there are no spikes
Parsed = TypeVar("Parsed")
HEALTH, SKIPPED = "health.json", "skipped.json"  # in a checkpoint; in a run


@dataclass
class State:
    """What :class:`Health` remembers; each checkpoint holds it as ``health.json``, for resuming to be exact."""

    skipped_steps: int = 0
    streak: int = 0  # steps skipped in a row
    losses: list[float] = field(default_factory=list)  # of the last WINDOW steps taken
    gradient_norms: list[float] = field(default_factory=list)

    def write(self, checkpoint: Path) -> None:
        """Put it into the folder ``checkpoint``."""
        (checkpoint / HEALTH).write_text(json.dumps(asdict(self)) + "\n")


class Health:
    """The rule by which steps are skipped; a pure function of what it is told, which is the same on all processes.

    Args:
        skip_limit: steps skipped in a row after which the run has failed.
        spike_factor: a loss or gradient norm is a spike if it is more than so many times the median of the last
            ``WINDOW`` steps that were taken; 0: never.
    """

    def __init__(self, skip_limit: int, spike_factor: float, state: State | None = None) -> None:
        state = state or State()
        self._limit, self._factor = skip_limit, spike_factor
        self.skipped_steps, self.streak = state.skipped_steps, state.streak
        self._losses = deque(state.losses, WINDOW)
        self._norms = deque(state.gradient_norms, WINDOW)

    def objection(self, broken: int, loss: float) -> str | None:
        """Say why a step must not be taken, or return None.

        Args:
            broken: processes on which the loss or the gradient is not finite.
            loss: mean over the global batch.
        """
        if broken:
            return f"the loss or gradient of {broken} process{'es' * (broken > 1)} is not finite"
        highest = self._highest(self._losses)
        if loss > highest:
            return f"its loss {loss:.4g} is a spike, above {highest:.4g}"
        return None

    @property
    def highest_norm(self) -> float:
        """The gradient norm above which a step must not be taken."""
        return self._highest(self._norms)

    def skipped(self) -> None:
        """Count a step that was not taken."""
        self.skipped_steps += 1
        self.streak += 1

    def taken(self, loss: float, gradient_norm: float | None) -> None:
        """Remember a step that was taken."""
        self.streak = 0
        self._losses.append(loss)
        if gradient_norm is not None and math.isfinite(gradient_norm):
            self._norms.append(gradient_norm)

    @property
    def failed(self) -> bool:
        """Whether too many steps in a row were skipped."""
        return self.streak >= self._limit

    def state(self) -> State:
        """Return a copy of what is remembered."""
        return State(self.skipped_steps, self.streak, list(self._losses), list(self._norms))

    def _highest(self, values: Sequence[float]) -> float:
        return self._factor * median(values) if self._factor and len(values) == WINDOW else math.inf


def read_state(checkpoint: Path) -> State:
    """Return what a verified checkpoint holds; a fresh state if it is of a time before there was one."""
    file = checkpoint / HEALTH
    if not file.exists():
        return State()
    return _parsed(file, lambda content: State(**content))


@dataclass(frozen=True)
class SkippedRange:
    """Positions of the data that are left out: from ``first`` on, before ``end``."""

    first: int
    end: int
    samples_seen: int  # of the checkpoint that the run went back to


class SkippedRanges:
    """The data that a run leaves out, kept in ``skipped.json`` in its folder; all processes are to hold the same."""

    def __init__(self, found: Sequence[SkippedRange] = ()) -> None:
        self.found = tuple(sorted(found, key=lambda skipped: skipped.first))

    def position(self, samples_seen: int) -> int:
        """Return the position of the data that comes after ``samples_seen`` samples, none of which was left out."""
        position, covered = samples_seen, 0
        for skipped in self.found:
            first = max(skipped.first, covered)  # one may overlap those before, where an older checkpoint was gone to
            if position >= first:
                position += max(skipped.end - first, 0)
            covered = max(covered, skipped.end)
        return position

    def count_skipped(self, samples_seen: int) -> int:
        """Return how many samples were left out until then."""
        return self.position(samples_seen) - samples_seen

    def went_back_to(self, samples_seen: int) -> bool:
        """Return whether the run went back to ``samples_seen`` before."""
        return any(skipped.samples_seen == samples_seen for skipped in self.found)

    def skipping(self, samples_seen: int, end: int) -> "SkippedRanges":
        """Return these and one more: from the position at ``samples_seen``, which the run goes back to, to ``end``."""
        return SkippedRanges([*self.found, SkippedRange(self.position(samples_seen), end, samples_seen)])

    def write(self, run: Path) -> None:
        """Replace the file in ``run``."""
        write_whole(run / SKIPPED, json.dumps([asdict(skipped) for skipped in self.found], indent=2).encode() + b"\n")


def read_skipped_ranges(run: Path) -> SkippedRanges:
    """Return what ``run`` leaves out.

    Raises:
        UserError: its file is damaged.
    """
    file = run / SKIPPED
    if not file.exists():
        return SkippedRanges()
    return SkippedRanges(_parsed(file, lambda content: [SkippedRange(**row) for row in content]))


def _parsed(file: Path, build: Callable[[Any], Parsed]) -> Parsed:
    try:
        found = build(json.loads(file.read_text()))
        for part in found if isinstance(found, list) else [found]:
            check_types(part)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({str(error)[:200]}); put back the one that the run wrote") from None
    return found
