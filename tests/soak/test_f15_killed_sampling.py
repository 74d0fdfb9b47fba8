"""F15: tasks of a sampling array that are killed, and run again, end with the files of a job that nothing disturbed.

The short forms of this row are in tests/sampling/test_job.py and tests/slurm/test_jobs.py.
"""

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.sampling.conftest import model, videos  # noqa: F401  (fixtures)
from tests.sampling.test_job import sample
from tests.support.faults import fault_trials
from tests.support.forked import end_with
from tests.support.sandbox import contents

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLES, PATIENCE = 9, 120.0  # number of samples of a job; seconds that a task may take
KINDS = ("svg", "a2v", "v2a")


class Array:
    """Tasks that share the samples of one folder, each in a process of its own."""

    def __init__(self, tiny, inputs: Path, output: Path, task: str, size: int) -> None:
        self._model, self._output, self._task, self._size = tiny, output, task, size
        self._inputs = () if task == "svg" else ("--input", inputs)
        self.log = output.parent / f"{output.name}.log"

    def start(self, number: int) -> int:
        """Start task ``number`` of the array; return its process."""
        return os.fork() or end_with(lambda: self._run(number))

    def _run(self, number: int) -> int:
        os.setsid()
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        settings = {"MIN": 0, "MAX": self._size - 1, "STEP": 1, "COUNT": self._size, "ID": number}
        os.environ |= {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in settings.items()}
        return sample(self._model, self._output, *self._inputs, task=self._task, number=SAMPLES)

    def made(self) -> int:
        """Return the number of files in the folder, begun ones included."""
        return sum(1 for _ in self._output.rglob("*"))


def wait_for(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_after(rng: random.Random, array: Array, process: int, goal: int) -> bool:
    """Kill ``process`` soon after there are ``goal`` files; return whether it was still at work."""
    deadline = time.monotonic() + PATIENCE
    while array.made() < goal and os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        assert time.monotonic() < deadline, array.log.read_text()
        time.sleep(0.001)
    time.sleep(rng.choice([0.0, 0.002, 0.05]) * rng.random())
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    return wait_for(process) == -signal.SIGKILL


def samples(folder: Path) -> dict[str, bytes]:
    """Return the content of each sample's and input's files, and of what describes them; not TensorBoard's."""
    files = contents(folder)
    return {name: content for name, content in files.items() if not name.startswith("tensorboard/")}


def run_all(array: Array, numbers: Sequence[int]) -> None:
    """Run tasks ``numbers`` at the same time, to their ends."""
    statuses = [wait_for(process) for process in [array.start(number) for number in numbers]]
    assert statuses == [0] * len(numbers), array.log.read_text()


@fault_trials.counts(full=50)
def test_killed_tasks_of_an_array_end_with_the_same_files(count, model, videos, tmp_path):  # noqa: F811
    expected = {}
    for kind in KINDS:
        run_all(Array(model, videos, tmp_path / kind, kind, 1), [0])
        expected[kind] = samples(tmp_path / kind)

    def trial(number: int) -> str:
        rng = random.Random(15_000 + number)
        kind, size, kills = KINDS[number % len(KINDS)], rng.choice([1, 2, 5]), 0
        array = Array(model, videos, tmp_path / f"trial-{number}", kind, size)
        team = {task: array.start(task) for task in range(size)}
        for _ in range(rng.randint(1, 4)):
            task = rng.choice(list(team))
            kills += kill_after(rng, array, team.pop(task), rng.randrange(len(expected[kind]) + 2))
            team[task] = array.start(task)  # requeued
        assert [wait_for(process) for process in team.values()] == [0] * size, array.log.read_text()
        run_all(array, range(size))  # blocks that a living task left to one that was killed then
        made = samples(tmp_path / f"trial-{number}")
        assert made.keys() == expected[kind].keys()
        assert [name for name in made if made[name] != expected[kind][name]] == []
        shutil.rmtree(tmp_path / f"trial-{number}")
        return f"{kind} by {size}, {'killed' if kills else 'done before the kill'}"

    fault_trials.run("F15 killed tasks of a sampling array end with the same files", count, trial)
