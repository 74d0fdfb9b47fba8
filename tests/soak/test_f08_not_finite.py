"""F8: a loss or gradient that is not finite on one rank: nothing is learned from that step on any; all else goes on.

The short form is tests/training/resilience/test_skipped_steps.py.
"""

import json
import random
import shutil

import pytest

from tests.support.faults import fault_trials
from tests.support.run_results import Finished, assert_same_checkpoint, learned
from tests.support.toy_runs import BATCH, SAMPLES, STEPS, Toys, steps_read

FAULTS = ("loss", "gradient", "discriminator")
VALUES = ("nan", "inf", "-inf")
OPTIONS = (f"training.checkpoint_every={BATCH}", "training.warmup_samples=200", "adversarial.after=0")
CLOCK = ("training/learning_rate", "training/ema_decay_0.1", "training/ema_decay_0.2")
LIMIT = 10  # steps skipped in a row after which a run goes back


@pytest.fixture(scope="module")
def toys(forks, tmp_path_factory) -> Toys:
    return Toys(forks, tmp_path_factory.mktemp("broken"))


def clock(run: Finished) -> list[list[float]]:
    """Return what follows from the samples seen, by steps."""
    return [[record[name] for name in CLOCK] for record in run.log()]


def check_skipped(run: Finished, steps: list[int], whole: Finished) -> None:
    """Hold a run in which ``steps``, counted from 1, were skipped against what is to become of it."""
    assert run.output.count("skipped the step to") == len(steps)
    assert run.output.count("the loss or gradient of 1 process is not finite") == len(steps)
    counted = [sum(step <= now for step in steps) for now in range(1, STEPS + 1)]
    assert [record["training/skipped_steps"] for record in run.log()] == counted
    assert clock(run) == clock(whole)
    assert steps_read(run.run) == [[*range(i, i + BATCH)] for i in range(0, SAMPLES, BATCH)]
    states = [learned(checkpoint) for checkpoint in run.checkpoints()]
    numbers = [int(checkpoint.name.removeprefix("step-")) // BATCH for checkpoint in run.checkpoints()]
    for (_, before), (number, after) in zip(
        zip(numbers, states, strict=True), zip(numbers[1:], states[1:], strict=True), strict=False
    ):
        same = [bool((after[name] == before[name]).all()) for name in after]
        assert all(same) if number in steps else not all(same), number


def check_gone_back(toys: Toys, run: Finished, first: int, options: tuple[str, ...]) -> None:
    """Hold a run, whose steps from ``first`` on were skipped, against one that never had their data."""
    seen = (first - 1) * BATCH
    assert run.output.count(f"going back to step-{seen:012d}") == 1, run.output
    left_out = [{"first": seen, "end": seen + LIMIT * BATCH, "samples_seen": seen}]
    assert json.loads((run.run / "skipped.json").read_text()) == left_out
    other = toys.folder / f"{run.run.name} without"
    other.mkdir()
    (other / "skipped.json").write_text(json.dumps(left_out))
    without = toys.train(other.name, *options)
    assert without.status == 0, without.output
    assert run.values() == without.values()
    assert_same_checkpoint(run.checkpoints()[-1], without.checkpoints()[-1])
    shutil.rmtree(other)


@fault_trials.counts(full=50)
def test_a_step_that_is_not_finite_is_skipped_on_all(count, toys):
    def trial(number: int) -> str:
        dice = random.Random(8_000 + number)
        stage, fault, value = number % 4, dice.choice(FAULTS), dice.choice(VALUES)
        options = (*OPTIONS, f"training.zero_stage={stage}")
        in_a_row = number % 5 == 4
        first = dice.randint(2, STEPS - LIMIT)
        steps = [*range(first, first + LIMIT)] if in_a_row else sorted(dice.sample(range(1, STEPS), dice.randint(1, 4)))
        at = [(step - 1) * BATCH + dice.randrange(BATCH) for step in steps]  # one sample: of one rank
        broken = (f"fault={fault}", f"fault_at={at}", f"not_finite='{value}'")
        run = toys.train(str(number), *options, *broken)
        assert run.status == 0, run.output
        if in_a_row:
            check_gone_back(toys, run, first, (*options, *broken))
        else:
            check_skipped(run, steps, toys.undisturbed(*options))
        shutil.rmtree(run.run)
        return f"{value} in the {fault}, {'gone back' if in_a_row else 'skipped'}"

    fault_trials.run("F8 a step is not finite", count, trial)
