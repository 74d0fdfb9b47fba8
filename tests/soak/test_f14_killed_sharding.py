"""F14: sharding that is killed, again and again, and run again ends with the bytes of a run that never was.

The short forms of this row are in tests/data_tools: test_shard.py, test_together.py, test_latents.py.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mmldm_scale.shards.reader import ShardSet
from tests.support.faults import fault_trials
from tests.support.sandbox import KINDS, Workshop, contents


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("shop"))


def until(dice: random.Random, output: Path, goal: int, process: subprocess.Popen[str]) -> None:
    """Wait until there are ``goal`` files in ``output``, or ``process`` has ended, and then a moment more."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if output.exists() and sum(1 for _ in output.rglob("*")) >= goal:
            break
        time.sleep(0.002)
    time.sleep(dice.choice([0.0, 0.005, 0.05]) * dice.random())


def kill(dice: random.Random, process: subprocess.Popen[str]) -> bool:
    """End ``process``, in half of the cases with all that it started; return whether it was still at work."""
    alive = process.poll() is None
    if alive and dice.random() < 0.5:
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.communicate()
    return alive


@fault_trials.counts(full=50)
def test_killed_sharding_ends_with_the_same_bytes(count, shop):
    def trial(number: int) -> str:
        dice = random.Random(14_000 + number)
        kind, size = KINDS[number % len(KINDS)], (1, 3)[number // len(KINDS) % 2]
        output, expected, kills = shop.folder / f"trial-{number}" / kind, shop.expected(kind), 0
        team = [shop.start(kind, output, dice.randrange(3)) for _ in range(size)]
        for _ in range(dice.randint(1, 4)):
            victim = team.pop(dice.randrange(size))
            until(dice, output, dice.randrange(len(expected) + 2), victim)
            kills += kill(dice, victim)
            team.append(shop.start(kind, output, dice.randrange(3)))
        answers = [process.communicate(timeout=180) for process in team]
        assert [process.returncode for process in team] == [0] * size, answers
        shop.check_deserted()
        found = contents(output)
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []
        if kind != "measure":
            shards = ShardSet(output, kind)
            assert len({shards.key(index) for index in range(len(shards))}) == shards.manifest.samples > 0
        shutil.rmtree(output.parent)
        return f"{kind} by {size} at once" if kills else f"{kind} by {size}, done before the kill"

    fault_trials.run("F14 killed sharding ends with the same bytes", count, trial)
