"""Which optimizer steps are skipped, when a run goes back to its last checkpoint, and which data it skips from then on.

A step whose loss or gradient is not finite on any process is skipped on all processes: its samples count as seen, and
nothing is learned from them. So is a step whose loss or gradient norm is a spike, if ``training.spike_factor`` is set.
After ``training.skip_limit`` skipped steps in a row the run goes back to its last checkpoint, and
:class:`SkippedRanges` makes it read on after the data of that time.

    skipping.begin_step()
    skipping.decide(non_finite_ranks, mean_loss)  # before engine.step(), which the guards then hold back or not
    reason = skipping.finish_step(gradient_norm)  # after it
"""

import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol, TypeVar

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import TrainingConfig
from mmldm_scale.shards.json_files import check_types
from mmldm_scale.training.engine.distributed import World

WINDOW = 64  # steps taken, of whose loss the median is the measure of a spike; before so many there are no spikes
SKIPPED = "skipped.json"  # in a run's folder
Parsed = TypeVar("Parsed")


class Guard(Protocol):
    """What holds an optimizer back; see :class:`mmldm_scale.training.engine.step_guard.StepGuard`."""

    skip_step: bool
    highest_norm: float

    def begin_step(self) -> None:
        """Forget the step before."""

    def is_finite(self) -> bool:
        """Return whether all losses and gradients of this process and step are finite."""


@dataclass
class SkippingState:
    """What :class:`StepSkipping` remembers, for resuming to be exact."""

    skipped_steps: int = 0
    consecutive_skips: int = 0
    losses: list[float] = field(default_factory=list)  # of the last WINDOW steps taken
    gradient_norms: list[float] = field(default_factory=list)


class StepSkipping:
    """Decides which steps are skipped: a pure function of its arguments, which are the same on all processes.

    Args:
        config: ``skip_limit`` and ``spike_factor``.
        guards: of the engines, the model's first.

    Attributes:
        skipped_steps: number of steps skipped so far.
        consecutive_skips: number of steps skipped since the last one taken.
    """

    def __init__(self, config: TrainingConfig, guards: Sequence[Guard] = ()) -> None:
        self._limit, self._factor, self._guards = config.skip_limit, config.spike_factor, guards
        self.skipped_steps = self.consecutive_skips = 0
        self._loss = 0.0  # of the step that was decided on
        self._reason: str | None = None  # why it is skipped
        self._remember(SkippingState())

    def begin_step(self) -> None:
        """Forget the step before."""
        for guard in self._guards:
            guard.begin_step()

    def is_finite(self) -> bool:
        """Return whether all losses and gradients of this process and step are finite; this waits for the device."""
        return all(guard.is_finite() for guard in self._guards)

    def decide(self, non_finite_ranks: int, loss: float) -> None:
        """Decide on the step whose gradients are complete, before the optimizers step.

        Args:
            non_finite_ranks: number of processes on which a loss or gradient is not finite.
            loss: mean over the global batch.
        """
        self._loss, self._reason = loss, self._skip_reason(non_finite_ranks, loss)
        for guard in self._guards:
            guard.skip_step = self._reason is not None
        if self._guards:
            self._guards[0].highest_norm = self._highest(self._norms)

    def finish_step(self, gradient_norm: float | None) -> str | None:
        """Record the step that was decided on; return why it was skipped, None if it was taken.

        Args:
            gradient_norm: of this step; None if it is not known.
        """
        reason = self._reason
        if reason is None and self._guards and self._guards[0].skip_step:
            highest = self._highest(self._norms)
            reason = f"its gradient norm {gradient_norm or math.inf:.4g} is a spike, above {highest:.4g}"
        if reason is not None:
            self.skipped_steps += 1
            self.consecutive_skips += 1
            return reason
        self.consecutive_skips = 0
        self._losses.append(self._loss)
        if gradient_norm is not None and math.isfinite(gradient_norm):
            self._norms.append(gradient_norm)
        return None

    @property
    def must_go_back(self) -> bool:
        """Whether so many steps in a row were skipped that the run goes back to its last checkpoint."""
        return self.consecutive_skips >= self._limit

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, as JSON values."""
        return asdict(SkippingState(self.skipped_steps, self.consecutive_skips, list(self._losses), list(self._norms)))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember ``state``; raise TypeError if it is not what :meth:`state_dict` returns."""
        loaded = SkippingState(**state)
        check_types(loaded)
        self._remember(loaded)

    def _remember(self, state: SkippingState) -> None:
        self.skipped_steps, self.consecutive_skips = state.skipped_steps, state.consecutive_skips
        self._losses: deque[float] = deque(state.losses, WINDOW)
        self._norms: deque[float] = deque(state.gradient_norms, WINDOW)

    def _skip_reason(self, non_finite_ranks: int, loss: float) -> str | None:
        """Return why a step must be skipped, or None."""
        if non_finite_ranks:
            return f"the loss or gradient of {non_finite_ranks} process{'es' * (non_finite_ranks > 1)} is not finite"
        highest = self._highest(self._losses)
        return f"its loss {loss:.4g} is a spike, above {highest:.4g}" if loss > highest else None

    def _highest(self, values: Sequence[float]) -> float:
        """Return what is no spike yet, by the ``values`` of the last steps taken."""
        return self._factor * median(values) if self._factor and len(values) == WINDOW else math.inf


@dataclass(frozen=True)
class SkippedRange:
    """Positions of the data that a run skips: from ``first`` on, before ``end``."""

    first: int
    end: int
    samples_seen: int  # of the checkpoint that the run went back to


class SkippedRanges:
    """The data that a run skips, kept in ``skipped.json`` in its folder; all processes must hold the same."""

    def __init__(self, ranges: Sequence[SkippedRange] = ()) -> None:
        self.ranges = tuple(sorted(ranges, key=lambda skipped: skipped.first))

    def position(self, samples_seen: int) -> int:
        """Return the position of the data that is read after ``samples_seen`` samples."""
        position, covered = samples_seen, 0
        for skipped in self.ranges:
            first = max(skipped.first, covered)  # ranges overlap where the run went back to an older checkpoint
            if position >= first:
                position += max(skipped.end - first, 0)
            covered = max(covered, skipped.end)
        return position

    def count_skipped(self, samples_seen: int) -> int:
        """Return how many samples were skipped until then."""
        return self.position(samples_seen) - samples_seen

    def went_back_to(self, samples_seen: int) -> bool:
        """Return whether the run went back to ``samples_seen`` before."""
        return any(skipped.samples_seen == samples_seen for skipped in self.ranges)

    def skipping(self, samples_seen: int, end: int) -> "SkippedRanges":
        """Return these and one more: from the position at ``samples_seen``, which the run goes back to, to ``end``."""
        return SkippedRanges([*self.ranges, SkippedRange(self.position(samples_seen), end, samples_seen)])

    def write(self, run: Path) -> None:
        """Replace the file in ``run``."""
        rows = [asdict(skipped) for skipped in self.ranges]
        write_whole(run / SKIPPED, json.dumps(rows, indent=2).encode() + b"\n")


def read_skipped_ranges(run: Path) -> SkippedRanges:
    """Return what ``run`` skips.

    Raises:
        UserError: its file is damaged.
    """
    file = run / SKIPPED
    if not file.exists():
        return SkippedRanges()
    return SkippedRanges(_parsed(file, lambda rows: [SkippedRange(**row) for row in rows]))


def read_skipped_ranges_on_rank0(run: Path, world: World) -> SkippedRanges:
    """Return what :func:`read_skipped_ranges` returns or raises on rank 0, on all ranks; they call this together."""
    result: SkippedRanges | UserError | None = None
    if world.is_rank0:
        try:
            result = read_skipped_ranges(run)
        except UserError as error:
            result = error
    result = world.broadcast_from_rank0(result)
    if not isinstance(result, SkippedRanges):
        raise result or RuntimeError("rank 0 sent no skipped ranges")
    return result


def _parsed(file: Path, build: Callable[[Any], list[Parsed]]) -> list[Parsed]:
    try:
        parsed = build(json.loads(file.read_text()))
        for part in parsed:
            check_types(part)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({str(error)[:200]}); restore the file that the run wrote") from None
    return parsed
