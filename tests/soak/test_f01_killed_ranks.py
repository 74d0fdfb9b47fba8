"""F1: a rank is killed at any time, saving included: started again the run ends with the bytes of one that was not.

The short form is in tests/training/test_loop.py.
"""

import random
import shutil

import pytest

from mmldm_scale.training.checkpoint.manifest import read_manifest
from tests.support.faults import fault_trials
from tests.support.process_runner import progress
from tests.support.run_results import Finished, assert_same_checkpoint
from tests.support.toy_runs import BATCH, SAMPLES, Toys, resumed_from

INTERVAL = 2 * BATCH  # samples from one checkpoint to the next
STARTING = 0.15  # share of the kills that come before the first step


@pytest.fixture(scope="module")
def toys(forks, tmp_path_factory) -> Toys:
    return Toys(forks, tmp_path_factory.mktemp("killed"))


def place(killed: Finished) -> str:
    """Say where a run was when it was killed."""
    if killed.status == 0:
        return "done before the kill"
    if any((killed.run / "checkpoints").glob("*.tmp")):
        return "killed while saving"
    return "killed while stepping" if logged(killed) else "killed before the first step"


def logged(run: Finished) -> int:
    return max(run.losses(), default=0) if (run.run / "log.jsonl").exists() else 0


@fault_trials.counts(full=200)
def test_a_killed_run_resumes_and_ends_with_the_same_bytes(count, toys):
    def trial(number: int) -> str:
        dice, stage = random.Random(1_000 + number), 1 + number % 3
        options = (f"training.zero_stage={stage}", f"training.checkpoint_every={INTERVAL}")
        whole = toys.undisturbed(*options)
        goal = 0 if dice.random() < STARTING else dice.randrange(progress(whole.run))
        delay = dice.choice([0.0, 0.01, 0.5 if goal == 0 else 0.05]) * dice.random()
        killed = toys.train(str(number), *options, how=("train_until_killed", dice.randrange(2), goal, delay))
        assert killed.status in (0, 9), killed.output
        found, seen = place(killed), logged(killed)
        again = toys.train(str(number), *options)
        assert again.status == 0, again.output
        if not found.startswith("done"):
            assert seen - resumed_from(again) <= 2 * INTERVAL, again.output
        assert again.values() == whole.values()
        assert [folder.name for folder in again.checkpoints()] == [folder.name for folder in whole.checkpoints()]
        assert read_manifest(again.checkpoints()[-1]).samples_seen == SAMPLES
        assert_same_checkpoint(again.checkpoints()[-1], whole.checkpoints()[-1])
        shutil.rmtree(again.run)
        return f"ZeRO-{stage} {found}"

    fault_trials.run("F1 a rank is killed", count, trial)
