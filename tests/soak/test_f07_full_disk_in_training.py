"""F7: the disk is full while a run trains: its log, TensorBoard and checkpoints end no run, and with room it completes.

The disk is a small file system in memory, which takes root to mount. The short form is
tests/training/checkpoint/test_full_disk.py.
"""

import random
import subprocess

import pytest

from tests.support.faults import fault_trials
from tests.support.run_results import assert_same_checkpoint
from tests.support.small_disk import mount_small_disk
from tests.support.toy_runs import BATCH, STEPS, Toys

EVERY_STEP = f"training.checkpoint_every={BATCH}"


@pytest.fixture(scope="module")
def toys(forks, tmp_path_factory) -> Toys:
    return Toys(forks, tmp_path_factory.mktemp("full"))


@fault_trials.counts(full=10)
def test_a_full_disk_ends_no_run(count, toys):
    def trial(number: int) -> str:
        dice, expected = random.Random(7_700 + number), toys.undisturbed(EVERY_STEP)
        with mount_small_disk(toys.folder / str(number), dice.randrange(60, 1200)) as disk:
            full = toys.train(f"{number}/run", EVERY_STEP)
            assert "Traceback" not in full.output, full.output
            began = "samples  loss" in full.output
            steps = full.output.count("samples  loss")
            assert steps == STEPS or (not began and "the disk is full" in full.output), full.output
            subprocess.run(["mount", "-o", "remount,size=32m", disk], check=True)
            finished = toys.train(f"{number}/run", EVERY_STEP)
            assert finished.status == 0, finished.output
            assert_same_checkpoint(finished.checkpoints()[-1], expected.checkpoints()[-1])
            assert finished.values() == expected.values()
        saved = "resuming from" in finished.output
        return (
            f"full {'before the first step' if not began else 'after a checkpoint' if saved else 'before a checkpoint'}"
        )

    fault_trials.run("F7 the disk is full in training", count, trial)
