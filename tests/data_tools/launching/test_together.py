"""Several processes that make one set at once, as real processes, some of them killed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_tools.shard import main

ROOT = Path(__file__).parents[3]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def arguments(videos, output, overrides, workers=0):
    return ["clips", "--input", str(videos), "--output", str(output), "--workers", str(workers), *overrides]


def start(videos, output, overrides, workers=0):
    command = [sys.executable, "data_tools/shard.py", *arguments(videos, output, overrides, workers)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(condition, *processes):
    """Wait until ``condition()`` holds or one of ``processes`` has ended, a minute at most."""
    deadline = time.monotonic() + 60
    while not condition() and all(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.005)


def tars(folder):
    return len(list(folder.glob("*.tar")))


@pytest.fixture
def many(overrides):
    """One sample a shard, so that there is something to share: 30 shards."""
    return [*overrides, "stride=1", "samples_per_shard=1"]


def test_processes_started_at_any_time_share_the_work(good_videos, many, tmp_path):
    output = tmp_path / "set"
    team = [start(good_videos, output, many, workers) for workers in (0, 1, 0)]
    until(lambda: tars(output), *team)
    team.append(start(good_videos, output, many))
    answers = [process.communicate(timeout=120) for process in team]
    assert [process.returncode for process in team] == [0, 0, 0, 0], answers
    assert all("27 clips in 30 shards" in out for out, _ in answers)
    assert sum("probing" in err for _, err in answers) == 1  # the others waited for its plan
    assert main(arguments(good_videos, tmp_path / "alone", many)) == 0
    assert contents(output) == contents(tmp_path / "alone")


def test_the_others_take_over_from_the_killed(good_videos, many, tmp_path):
    """Three processes; every now and then one is killed and a new one started."""
    output, moments, kills = tmp_path / "set", random.Random(1), 0
    team = [start(good_videos, output, many) for _ in range(3)]
    while all(process.poll() is None for process in team) and kills < 6:
        shards = tars(output)
        until(lambda more=shards + 2: tars(output) >= more, *team)
        victim = team.pop(moments.randrange(3))
        kills += victim.poll() is None
        victim.kill()
        victim.communicate()
        team.append(start(good_videos, output, many))
    answers = [process.communicate(timeout=120) for process in team]
    assert kills >= 2
    assert [process.returncode for process in team] == [0, 0, 0], answers
    assert main(arguments(good_videos, tmp_path / "alone", many)) == 0
    assert contents(output) == contents(tmp_path / "alone")


def test_a_frozen_process_does_no_harm_when_it_goes_on(good_videos, many, tmp_path):
    """Its lease passes to another, which finishes the set; then it wakes, in the middle of its shard."""
    output = tmp_path / "set"
    frozen = start(good_videos, output, many)
    until(lambda: tars(output), frozen)
    os.kill(frozen.pid, signal.SIGSTOP)
    for lease in (output / "leases").iterdir():  # as if its node had been taken for dead
        lease.unlink()
    assert main(arguments(good_videos, output, many)) == 0
    before = contents(output)
    os.kill(frozen.pid, signal.SIGCONT)
    out, err = frozen.communicate(timeout=60)
    assert frozen.returncode == 0, (out, err)
    assert contents(output) == before


def test_a_mistake_of_one_is_no_trouble_for_the_other(good_videos, many, tmp_path):
    output = tmp_path / "set"
    right = start(good_videos, output, many)
    until((output / "plan.json").exists, right)
    wrong = start(good_videos, output, [*many, "stride=2"])
    assert "begun with another configuration (stride" in wrong.communicate(timeout=60)[1]
    assert wrong.returncode == 2
    assert right.wait(60) == 0
