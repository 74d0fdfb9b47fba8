"""Combined faults: a run that is killed, stopped and moved, whose disk and data fail, ends like an undisturbed one.

Each trial is a night. Again and again a rank is killed, one is signalled, or a disk fails while a checkpoint is being
written; often the newest of several checkpoints is then damaged as well, and steps whose gradient is not finite are
among the data. In every second night, the next start has other processes and another ZeRO stage too.
"""

import random
import shutil
import signal
from dataclasses import dataclass

import pytest
import torch

from mmldm_scale.common.errors import Outage
from mmldm_scale.training.resilience.signals import EXIT_STOPPED, WATCHED
from mmldm_scale.training.resilience.watchdog import EXIT_HUNG
from tests.support.faults import fault_trials
from tests.support.process_runner import progress
from tests.support.run_results import Finished, assert_same_checkpoint
from tests.support.toy_runs import BATCH, Toys, harm, weights

STEPS, INTERVAL = 60, 2 * BATCH  # samples from one checkpoint to the next
TOTAL = STEPS * BATCH
LENGTH = (f"training.total_samples={TOTAL}", f"training.preview_every={TOTAL}", f"training.checkpoint_every={INTERVAL}")
DISTURBANCES = 8
DAMAGED = 0.3  # share of the disturbances after which the newest checkpoint is damaged
APART = 1e-6  # relative, of weights and losses, after sums in other orders
BAD_STEPS = ((7, 8, 31), (0, 20, 44), (15, 16, 17))


@dataclass
class Start:
    """How the run is started next."""

    processes: int
    zero_stage: int

    @classmethod
    def draw(cls, dice: random.Random) -> "Start":
        return cls(dice.choice((1, 2, 4)), dice.choice((1, 2, 3)))


@pytest.fixture(scope="module")
def toys(forks, tmp_path_factory) -> Toys:
    return Toys(forks, tmp_path_factory.mktemp("nights"))


def data(number: int) -> tuple[str, ...]:
    bad = [step * BATCH + 3 for step in BAD_STEPS[number % len(BAD_STEPS)]]
    return *LENGTH, "fault=gradient", f"fault_at={bad}".replace(" ", ""), "training.learning_rate=1e-4"


def disturbed(toys: Toys, name: str, options: tuple, start: Start, dice: random.Random) -> tuple[str, Finished]:
    """Start the run and disturb it after some more steps; return the disturbance and its outcome."""
    kind, rank = dice.choice(("killed", "signalled", "disk")), dice.randrange(start.processes)
    goal, delay = progress(toys.folder / name) + dice.randrange(1, 60), 0.02 * dice.random()
    how = {
        "killed": ("train_until_killed", rank, goal, delay),
        "signalled": ("train_until_signalled", [[rank, dice.choice(WATCHED), goal, delay]]),
        "disk": ("train_on_failing_disk", "error", rank, dice.randrange(1, 30)),
    }[kind]
    done = toys.train(name, *options, f"training.zero_stage={start.zero_stage}", processes=start.processes, how=how)
    expected = {"killed": (signal.SIGKILL, EXIT_HUNG), "signalled": (EXIT_STOPPED,), "disk": (Outage.status,)}[kind]
    assert done.status in (0, *expected), done.output  # no launcher ends those that wait for one that was killed
    return (kind if done.status else "done"), done


@fault_trials.counts(full=40, short=2)
def test_a_run_with_combined_faults_ends_like_an_undisturbed_one(count, toys):
    def trial(number: int) -> str:
        dice, moved, name = random.Random(20_000 + number), number % 2 == 1, str(number)
        options, start = data(number), Start(2, 2) if number % 2 else Start.draw(dice)
        whole = toys.undisturbed(*options, f"training.zero_stage={start.zero_stage}", processes=start.processes)
        events = []
        while len(events) < (DISTURBANCES if count > 2 else DISTURBANCES // 2):
            kind, run = disturbed(toys, name, options, start, dice)
            if kind == "done":
                break
            events.append(kind)
            saved = [folder for folder in run.checkpoints() if folder.suffix != ".tmp"]
            if len(saved) > 1 and dice.random() < DAMAGED:  # a run whose only one is damaged is somebody's to decide on
                harm(saved[-1], dice.choice(("flip", "cut", "missing")), dice)
                events.append("damaged")
            start = Start.draw(dice) if moved else start
        stage = f"training.zero_stage={start.zero_stage}"
        run = toys.train(name, *options, stage, processes=start.processes)
        assert run.status == 0, run.output
        compare(run, whole, exact=not moved)
        shutil.rmtree(run.run)
        return f"{'moved' if moved else 'in place'}: {len(events)} disturbances"

    fault_trials.run("a whole night", count, trial)


def compare(run: Finished, whole: Finished, exact: bool) -> None:
    """Hold a run's log and last checkpoint against those of an undisturbed one."""
    if exact:
        assert run.values() == whole.values()
        assert_same_checkpoint(run.checkpoints()[-1], whole.checkpoints()[-1])
        return
    found, expected = run.values(), whole.values()
    assert found.keys() == expected.keys()
    for seen, values in expected.items():
        assert found[seen]["training/skipped_steps"] == values["training/skipped_steps"]
        assert ("loss" in found[seen]) == ("loss" in values), seen  # a step that was skipped has none
        assert found[seen].get("loss", 0) == pytest.approx(values.get("loss", 0), rel=APART), seen
    apart = torch.linalg.vector_norm(weights(run) - weights(whole)) / torch.linalg.vector_norm(weights(whole))
    assert apart <= APART
