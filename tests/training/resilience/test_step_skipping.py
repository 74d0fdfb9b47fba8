"""Which steps and which data are skipped; in real runs: ``test_skipped_steps.py``."""

import json
import math
from itertools import chain
from pathlib import Path

import pytest

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import TrainingConfig
from mmldm_scale.training.data.loader import MicroBatches
from mmldm_scale.training.resilience.step_skipping import (
    WINDOW,
    SkippedRange,
    SkippedRanges,
    StepSkipping,
    read_skipped_ranges,
)


class RecordedGuard:
    """A guard that a test reads."""

    def __init__(self) -> None:
        self.skip_step, self.highest_norm, self.finite = False, math.inf, True

    def begin_step(self) -> None:
        self.skip_step, self.highest_norm = False, math.inf

    def is_finite(self) -> bool:
        return self.finite


def rule(skip_limit: int = 3, spike_factor: float = 0.0) -> tuple[StepSkipping, RecordedGuard]:
    guard = RecordedGuard()
    return StepSkipping(TrainingConfig(skip_limit=skip_limit, spike_factor=spike_factor), [guard]), guard


def take(skipping: StepSkipping, guard: RecordedGuard, loss: float = 1.0, norm: float | None = None) -> str | None:
    """Go through a step with ``loss`` and ``norm``, as the loop does; return why it was skipped."""
    skipping.begin_step()
    broken = 0 if math.isfinite(loss) else 1
    skipping.decide(broken, 0.0 if broken else loss)
    if norm is not None and norm > guard.highest_norm:  # as StepGuard does inside of the optimizer's step
        guard.skip_step = True
    assert guard.skip_step or not broken
    return skipping.finish_step(norm)


def test_a_step_that_is_not_finite_is_always_skipped() -> None:
    skipping, guard = rule()
    for ranks, text in ((1, "1 process"), (2, "2 processes")):
        skipping.decide(ranks, 0.0)
        assert guard.skip_step
        assert skipping.finish_step(None) == f"the loss or gradient of {text} is not finite"
    assert take(skipping, guard, 1e30) is None


def test_only_consecutive_skips_make_the_run_go_back() -> None:
    skipping, guard = rule(skip_limit=3)
    for _ in range(5):
        take(skipping, guard, math.nan)
        take(skipping, guard, math.nan)
        assert not skipping.must_go_back
        take(skipping, guard)
    for expected in (False, False, True):
        take(skipping, guard, math.nan)
        assert skipping.must_go_back is expected
    assert skipping.skipped_steps == 13


def test_a_spike_is_measured_by_the_median_of_the_last_steps_taken() -> None:
    skipping, guard = rule(spike_factor=4)
    for step in range(2 * WINDOW):
        assert take(skipping, guard, 1.0 if step < WINDOW else 2.0 + step % 2, 10.0) is None  # at last half 2, half 3
        assert step >= WINDOW or guard.highest_norm == math.inf
    assert take(skipping, guard, 10.1) == "its loss 10.1 is a spike, above 10"
    assert take(skipping, guard, 10.0, norm=41.0) == "its gradient norm 41 is a spike, above 40"
    for _ in range(WINDOW):
        assert take(skipping, guard, 10.1)  # skipped steps do not count: else a plateau of spikes would become the rule


def test_a_gradient_norm_that_is_unknown_or_infinite_is_no_measure() -> None:
    skipping, guard = rule(spike_factor=4)
    for _ in range(WINDOW):
        take(skipping, guard, 1.0, None)
        take(skipping, guard, 1.0, math.inf)
    assert guard.highest_norm == math.inf


def test_its_state_is_restored_exactly() -> None:
    skipping, guard = rule(skip_limit=2, spike_factor=4)
    for step in range(WINDOW + 7):
        take(skipping, guard, 1 / (3 + step), math.sqrt(step))
    take(skipping, guard, math.nan)
    again, other = rule(skip_limit=2, spike_factor=4)
    again.load_state_dict(json.loads(json.dumps(skipping.state_dict())))
    assert again.state_dict() == skipping.state_dict()
    assert (again.skipped_steps, again.must_go_back) == (1, False)
    assert take(again, other, 1.0) == take(skipping, guard, 1.0) != None  # noqa: E711 (one chain)
    assert again.must_go_back
    assert other.highest_norm == guard.highest_norm < math.inf


@pytest.mark.parametrize("state", [{"skipped_steps": "1"}, {"streak": 1}, {"losses": [1, "a"]}])
def test_a_state_of_other_keys_or_types_is_refused(state: dict) -> None:
    with pytest.raises(TypeError):
        rule()[0].load_state_dict(state)


def positions(skipped_data: SkippedRanges, samples_seen: int = 0, world: int = 1) -> list[list[int]]:
    """Return the global batches of 8, of which there are 10."""
    ranks = [list(MicroBatches(samples_seen, 80, 8, 2, rank, world, skipped_data)) for rank in range(world)]
    flat = [sorted(chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)]
    micros = 8 // (2 * world)
    return [sorted(chain.from_iterable(flat[i : i + micros])) for i in range(0, len(flat), micros)]


def test_positions_continue_after_skipped_ranges_on_any_number_of_processes() -> None:
    skipped = SkippedRanges().skipping(16, end=40)
    skipped = skipped.skipping(24, end=64)  # from position 48 on
    expected = [[*range(first, first + 8)] for first in (0, 8, 40, *range(64, 120, 8))]
    assert positions(skipped) == positions(skipped, world=2) == positions(skipped, world=4) == expected
    assert positions(skipped, samples_seen=24) == expected[3:]
    assert [skipped.count_skipped(seen) for seen in (8, 16, 24, 80)] == [0, 24, 40, 40]
    assert skipped.went_back_to(16)
    assert skipped.went_back_to(24)
    assert not skipped.went_back_to(32)


def test_a_range_inside_an_older_one_skips_no_more_than_its_own_positions() -> None:
    """As when the checkpoint that the run went back to is damaged later, and it goes back to one before that."""
    skipped = SkippedRanges().skipping(32, end=48).skipping(16, end=64)
    assert positions(skipped)[:4] == [[*range(first, first + 8)] for first in (0, 8, 64, 72)]


def test_skipped_ranges_are_kept_in_the_run(tmp_path: Path) -> None:
    assert read_skipped_ranges(tmp_path).ranges == ()
    skipped = SkippedRanges().skipping(16, end=40)
    skipped.write(tmp_path)
    assert read_skipped_ranges(tmp_path).ranges == skipped.ranges == (SkippedRange(16, 40, 16),)


TYPED = '[{"first": 1, "end": "2", "samples_seen": 1}]'


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", '[{"first": 1}]', TYPED])
def test_a_damaged_list_of_skipped_ranges_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "skipped.json").write_text(content)
    with pytest.raises(UserError, match=r"skipped.json: cannot be read \(.*\); restore") as error:
        read_skipped_ranges(tmp_path)
    assert "\n" not in str(error.value)
