"""F2: stopped and resumed at each save point, a run is bit for bit the one that was never stopped.

The short form is in tests/training/test_loop.py.
"""

import shutil

import pytest

from tests.support.faults import fault_trials
from tests.support.run_results import assert_same_checkpoint
from tests.support.toy_runs import BATCH, SAMPLES, STEPS, Toys, resumed_from, steps_read


@pytest.fixture(scope="module")
def toys(forks, tmp_path_factory) -> Toys:
    return Toys(forks, tmp_path_factory.mktemp("stopped"))


@fault_trials.counts(full=4 * STEPS)
def test_resumed_from_any_save_point_everything_is_the_same_to_the_bit(count, toys):
    """Every save point comes with every ZeRO stage."""

    def trial(number: int) -> str:
        point, stage = number % STEPS + 1, (number + number // STEPS) % 4
        options = (f"training.zero_stage={stage}", f"training.checkpoint_every={BATCH}")
        whole = toys.undisturbed(*options)
        first = toys.train(str(number), *options, f"training.total_samples={point * BATCH}")
        assert first.status == 0, first.output
        again = toys.train(str(number), *options)
        assert (again.status, resumed_from(again)) == (0, point * BATCH), again.output
        assert (
            steps_read(again.run) == steps_read(whole.run) == [[*range(i, i + BATCH)] for i in range(0, SAMPLES, BATCH)]
        )
        assert again.values() == whole.values()  # losses, learning rates, decays of the averages, gradient norms
        for one, other in zip(again.checkpoints()[point:], whole.checkpoints()[point:], strict=True):
            assert_same_checkpoint(one, other)
        shutil.rmtree(again.run)
        return f"ZeRO-{stage}"

    fault_trials.run("F2 stopped and resumed at every save point", count, trial)
