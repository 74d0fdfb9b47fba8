"""F12: a rank hangs: it is found within the time-out and five seconds, all write their stacks, and nothing is left.

The short form is tests/training/resilience/test_watchdog.py.
"""

import random

import pytest

from tests.support.faults import fault_trials
from tests.support.toy_runs import BATCH, STEPS, Toys
from tests.training.resilience.test_watchdog import hung

LIMIT, LATE = 5.0, 5.0  # seconds: of the watchdog; that may pass from there to the end
WAYS = {  # how a rank hangs: the toy's fault, its loader workers, and what is said
    "frozen": ("frozen", 0, "shows no sign of life"),
    "frozen loader worker": ("frozen", 1, "waits for its data"),
    "sleeping loader worker": ("sample", 2, "waits for its data"),
    "sleeping in its data": ("sample", 0, "waits for its data"),
    "sleeping in the model": ("forward", 0, "hangs in a step"),
}


@pytest.fixture(scope="module")
def toys(forks, tmp_path_factory) -> Toys:
    return Toys(forks, tmp_path_factory.mktemp("hung"))


@fault_trials.counts(full=10)
def test_a_hung_rank_is_found_named_and_ended(count, toys):
    def trial(number: int) -> str:
        dice, way = random.Random(12_000 + number), list(WAYS)[number % len(WAYS)]
        hang, workers, what = WAYS[way]
        size, position = dice.choice([2, 4]), BATCH * dice.randrange(1, STEPS) + dice.randrange(BATCH)
        guilty = position % BATCH // 4 % size
        run = toys.train(
            str(number),
            *(f"hang={hang}", f"hang_at={position}", f"training.workers={workers}", "training.log_every=16"),
            *(f"training.collective_timeout={LIMIT}", f"training.zero_stage={dice.randrange(4)}"),
            processes=size,
        )
        said, reports = hung(run)
        assert said.startswith(f"rank {guilty} (pid ")
        assert said.endswith(what)
        assert set(reports) == set(range(size)) - ({guilty} if way == "frozen" else set())
        (diagnosis,) = run.run.glob("hangs/*/diagnosis.txt")
        assert diagnosis.stat().st_mtime - (run.run / "log.jsonl").stat().st_mtime < LIMIT + LATE
        return way

    fault_trials.run("F12 a rank hangs", count, trial)
