"""F9: a spike of the loss or of the gradient's norm is skipped; a plateau of spikes is gone back from, once.

The short form is in tests/training/resilience/test_skipped_steps.py.
"""

import json
import random
import shutil

import pytest

from mmldm_scale.training.resilience.step_skipping import WINDOW
from tests.support.faults import fault_trials
from tests.support.toy_runs import BATCH, Toys

STEPS, LIMIT = 100, 5
OPTIONS = (
    *(f"training.total_samples={BATCH * STEPS}", f"training.checkpoint_every={BATCH * 20}"),
    *("training.spike_factor=8", f"training.skip_limit={LIMIT}", "adversarial.after=1120"),
)
FAULTS = {"spike": "its loss", "steep": "its gradient norm"}


@pytest.fixture(scope="module")
def toys(forks, tmp_path_factory) -> Toys:
    return Toys(forks, tmp_path_factory.mktemp("spikes"))


@fault_trials.counts(full=20)
def test_spikes_are_skipped_and_a_plateau_makes_the_run_go_back_once(count, toys):
    def trial(number: int) -> str:
        dice, fault = random.Random(9_000 + number), [*FAULTS][number % 2]
        in_a_row = number % 4 > 1
        first = dice.randint(WINDOW + 2, STEPS - LIMIT - 1)
        at = [(first + i) * BATCH + dice.randrange(BATCH) for i in range(LIMIT if in_a_row else 1)]
        run = toys.train(str(number), *OPTIONS, f"training.zero_stage={number % 4}", f"fault={fault}", f"fault_at={at}")
        assert run.status == 0, run.output
        assert run.output.count("skipped the step to") == len(at), run.output
        assert run.output.count(FAULTS[fault]) == len(at), run.output
        went_back = run.output.count("going back to step-")
        assert went_back == in_a_row, run.output
        assert (run.run / "skipped.json").exists() == in_a_row
        if in_a_row:
            (stretch,) = json.loads((run.run / "skipped.json").read_text())
            assert stretch["first"] <= at[0]
            assert stretch["end"] == (first + LIMIT) * BATCH
        after = [loss for seen, loss in run.losses().items() if seen > (first + LIMIT + 1) * BATCH]
        assert max(after, default=0) < 4  # it was 1 at the start; with the spikes learned from, tens
        shutil.rmtree(run.run)
        return f"{fault}, {'gone back' if in_a_row else 'skipped'}"

    fault_trials.run("F9 a spike", count, trial)
