"""The rule by which steps are skipped, and the data that is left out; in real runs: ``test_skipped_steps.py``."""

import math
from itertools import chain
from pathlib import Path

import pytest

from mmldm_scale.common.errors import UserError
from mmldm_scale.training.data.loader import MicroBatches
from mmldm_scale.training.resilience.step_skipping import (
    WINDOW,
    Health,
    SkippedRange,
    SkippedRanges,
    read_skipped_ranges,
    read_state,
)


def test_what_is_not_finite_is_never_taken() -> None:
    health = Health(skip_limit=3, spike_factor=0)
    assert health.objection(broken=0, loss=1e30) is None
    assert health.objection(broken=1, loss=0.0) == "the loss or gradient of 1 process is not finite"
    assert health.objection(broken=2, loss=0.0) == "the loss or gradient of 2 processes is not finite"


def test_only_steps_skipped_in_a_row_are_a_failure() -> None:
    health = Health(skip_limit=3, spike_factor=0)
    for _ in range(5):
        health.skipped()
        health.skipped()
        assert not health.failed
        health.taken(1.0, None)
    for expected in (False, False, True):
        health.skipped()
        assert health.failed is expected
    assert health.skipped_steps == 13


def test_spikes_are_held_against_the_median_of_the_last_steps_taken() -> None:
    health = Health(skip_limit=3, spike_factor=4)
    for step in range(2 * WINDOW):
        if step < WINDOW:
            assert health.objection(0, 1e6) is None
            assert health.highest_norm == math.inf
        health.taken(1.0 if step < WINDOW else 2.0 + step % 2, 10.0)  # the last ones: half 2, half 3
    assert health.objection(0, 10.0) is None
    assert health.objection(0, 10.1) == "its loss 10.1 is a spike, above 10"
    assert health.highest_norm == 40.0
    for _ in range(WINDOW):
        health.skipped()  # which is forgotten: else a plateau of spikes would become the rule
    assert health.objection(0, 10.1)


def test_a_gradient_norm_that_nobody_tells_or_that_overflowed_is_no_measure() -> None:
    health = Health(skip_limit=3, spike_factor=4)
    for _ in range(WINDOW):
        health.taken(1.0, None)
        health.taken(1.0, math.inf)
    assert health.highest_norm == math.inf


def test_it_is_carried_on_from_a_checkpoint_as_it_was(tmp_path: Path) -> None:
    health = Health(skip_limit=2, spike_factor=4)
    for step in range(WINDOW + 7):
        health.taken(1 / (3 + step), math.sqrt(step))
    health.skipped()
    health.state().write(tmp_path)
    again = Health(2, 4, read_state(tmp_path))
    assert (again.skipped_steps, again.failed, again.highest_norm) == (1, False, health.highest_norm)
    assert [again.objection(0, 4 / n) for n in range(3, 70)] == [health.objection(0, 4 / n) for n in range(3, 70)]
    again.skipped()
    assert again.failed
    assert read_state(tmp_path / "of an older program").skipped_steps == 0


def positions(skipped_data: SkippedRanges, samples_seen: int = 0, world: int = 1) -> list[list[int]]:
    """Return the global batches of 8, of which there are 10."""
    ranks = [list(MicroBatches(samples_seen, 80, 8, 2, rank, world, skipped_data)) for rank in range(world)]
    flat = [sorted(chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)]
    micros = 8 // (2 * world)
    return [sorted(chain.from_iterable(flat[i : i + micros])) for i in range(0, len(flat), micros)]


def test_positions_go_on_behind_what_is_left_out_on_any_number_of_processes() -> None:
    skipped = SkippedRanges().skipping(16, end=40)
    skipped = skipped.skipping(24, end=64)  # from position 48 on
    expected = [[*range(first, first + 8)] for first in (0, 8, 40, *range(64, 120, 8))]
    assert positions(skipped) == positions(skipped, world=2) == positions(skipped, world=4) == expected
    assert positions(skipped, samples_seen=24) == expected[3:]
    assert [skipped.count_skipped(seen) for seen in (8, 16, 24, 80)] == [0, 24, 40, 40]
    assert skipped.went_back_to(16)
    assert skipped.went_back_to(24)
    assert not skipped.went_back_to(32)


def test_a_stretch_inside_of_an_older_one_leaves_out_no_more_than_it_says() -> None:
    """As when the checkpoint that the run went back to is damaged later, and it goes back to one before that."""
    skipped = SkippedRanges().skipping(32, end=48).skipping(16, end=64)
    assert positions(skipped)[:4] == [[*range(first, first + 8)] for first in (0, 8, 64, 72)]


def test_what_is_left_out_is_kept_in_the_run(tmp_path: Path) -> None:
    assert read_skipped_ranges(tmp_path).found == ()
    skipped = SkippedRanges().skipping(16, end=40)
    skipped.write(tmp_path)
    assert read_skipped_ranges(tmp_path).found == skipped.found == (SkippedRange(16, 40, 16),)


TYPED = '[{"first": 1, "end": "2", "samples_seen": 1}]'


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", '[{"first": 1}]', TYPED])
def test_damaged_list_of_what_is_left_out_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "skipped.json").write_text(content)
    with pytest.raises(UserError, match=r"skipped.json: cannot be read \(.*\); put back") as error:
        read_skipped_ranges(tmp_path)
    assert "\n" not in str(error.value)
