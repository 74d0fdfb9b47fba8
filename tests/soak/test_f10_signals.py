"""F10: any rank is signalled to stop, once or more: all save at the same step, at once, and with their own exit status.

So they do if their launcher is signalled, before the first checkpoint, too. The short forms are in
tests/training/test_loop.py, tests/training/resilience/test_signals.py and tests/slurm.
"""

import itertools
import json
import random
import re
import shutil
import signal

import pytest

from mmldm_scale.training.resilience.signals import EXIT_STOPPED, WATCHED
from tests.support.datasets.latent_sets import write_latents
from tests.support.faults import fault_trials
from tests.support.signalled_run import SignalledRun
from tests.support.toy_runs import BATCH, Toys, resumed_from

ENDLESS = ("training.total_samples=16000000", "training.checkpoint_every=16000000", "training.preview_every=16000000")
LINE = re.compile(r"stopping at (?P<at>[\d,]+) samples after .*; saved")
SIGNALS = (*WATCHED, signal.SIGINT)
FIRST_CHECKPOINT = (0, 800)  # samples; 0: none before the signal
COMBINATIONS = [
    *itertools.product(["alone"], ["launcher"], SIGNALS, FIRST_CHECKPOINT),
    *itertools.product(["--processes", "torchrun"], ["launcher", "rank", "all"], SIGNALS, FIRST_CHECKPOINT),
]


@pytest.fixture(scope="module")
def toys(forks, tmp_path_factory) -> Toys:
    return Toys(forks, tmp_path_factory.mktemp("signalled"))


def plan(dice: random.Random, size: int) -> list[tuple[int, int, int, float]]:
    """Return when which rank gets which signal: first at some step, and often a second one soon after."""
    goal, delay = dice.randrange(1, 40), 0.05 * dice.random()
    first = (dice.randrange(size), dice.choice(WATCHED), goal, delay)
    second = (dice.randrange(size), dice.choice(WATCHED), goal, delay + dice.choice([0.001, 0.1, 0.5]) * dice.random())
    return [first, second] if dice.random() < 0.7 else [first]


@fault_trials.counts(full=50)
def test_a_signal_to_any_rank_saves_all_at_the_same_step(count, toys):
    def trial(number: int) -> str:
        dice = random.Random(10_000 + number)
        size = dice.choice([2, 2, 4])
        options = (f"training.workers={dice.randrange(2)}", f"training.zero_stage={dice.randrange(4)}")
        signals = plan(dice, size)
        how = ("train_until_signalled", signals)
        stopped = toys.train(str(number), *ENDLESS, *options, processes=size, how=how)
        assert stopped.output.count(f" ends with {EXIT_STOPPED}\n") == size, stopped.output
        (line,) = filter(None, map(LINE.fullmatch, stopped.output.splitlines()))
        at = int(line["at"].replace(",", ""))
        logged = (stopped.run / "signalled-0").read_text().rpartition("\n")[0].splitlines()
        assert at <= json.loads(logged[-1])["samples_seen"] + 2 * BATCH  # that step, or the one that it is too late for
        assert [folder.name for folder in stopped.checkpoints()] == [f"step-{at:012d}"]
        again = toys.train(str(number), *options, f"training.total_samples={at + BATCH}", processes=size)
        assert again.status == 0, again.output
        assert resumed_from(again) == at
        shutil.rmtree(stopped.run)
        return " and ".join(signal.Signals(sent).name for _, sent, _, _ in signals)

    fault_trials.run("F10 a rank is signalled", count, trial)


@fault_trials.counts(full=len(COMBINATIONS))
def test_a_signal_to_the_launcher_or_the_ranks_saves(count, tmp_path):
    latents = write_latents(tmp_path / "set")

    def trial(number: int) -> str:
        launcher, target, sent, every = COMBINATIONS[number % len(COMBINATIONS)]
        run = SignalledRun(launcher, latents, tmp_path / f"run-{number}", every)
        try:
            run.signal(sent, target)
            status, reason = run.wait(), run.stopped_by()
        finally:
            run.kill()
        if launcher != "torchrun":
            assert status == EXIT_STOPPED, run.output
            assert "Traceback" not in run.output
        assert status != 0  # torchrun's own end is its own affair
        dies = launcher == "torchrun" and target == "launcher" and sent in (signal.SIGUSR1, signal.SIGUSR2)
        name = "Ctrl-C" if sent == signal.SIGINT else sent.name
        expected = {"rank": "a signal to another rank"}.get(target, "SIGTERM" if dies else name)
        assert reason == expected, run.output
        shutil.rmtree(run.run)
        return f"{sent.name} to {target} of {launcher}"

    fault_trials.run("F10 a launcher is signalled", count, trial)
