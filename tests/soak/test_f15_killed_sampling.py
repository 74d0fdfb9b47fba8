"""F15: tasks of a sampling array that are killed or fail, and run again, end with the files of an undisturbed job.

Other short forms of this row are in tests/sampling/test_job.py, test_lossless.py and tests/slurm/test_jobs.py.
"""

import contextlib
import functools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mmldm_scale.common.errors import refused_paths
from tests.sampling.conftest import model, videos  # noqa: F401  (fixtures)
from tests.sampling.test_job import sample
from tests.support.faults import fault_trials
from tests.support.forked import end_with
from tests.support.sandbox import contents
from tests.support.small_disk import mount_small_disk

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLES, PATIENCE = 9, 120.0  # number of samples of a job; seconds that a task may take
KINDS = ("svg", "a2v", "v2a")
SIZES = (1, 2, 5)  # tasks of an array


class Array:
    """Tasks that share the samples of one folder, each in a process of its own."""

    def __init__(self, tiny, inputs: Path, output: Path, task: str, size: int) -> None:
        self._model, self._output, self._task = tiny, output, task
        self.inputs, self.size = inputs, size
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
        settings = {"MIN": 0, "MAX": self.size - 1, "STEP": 1, "COUNT": self.size, "ID": number}
        os.environ |= {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in settings.items()}
        with refused_paths():
            return sample(self._model, self._output, *self._inputs, task=self._task, number=SAMPLES)

    def made(self) -> int:
        """Return the number of files in the folder, begun ones included."""
        return sum(1 for _ in self._output.rglob("*"))


def wait_for(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def end_after(rng: random.Random, array: Array, process: int, goal: int, number: int) -> bool:
    """Send ``process`` the signal ``number`` soon after there are ``goal`` files; return whether it ended by that."""
    deadline = time.monotonic() + PATIENCE
    while array.made() < goal and os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        assert time.monotonic() < deadline, array.log.read_text()
        time.sleep(0.001)
    time.sleep(rng.choice([0.0, 0.002, 0.05]) * rng.random())
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)
    status = wait_for(process)
    assert status in (0, -number, 128 + number), array.log.read_text()
    return status != 0


def samples(folder: Path) -> dict[str, bytes]:
    """Return the content of each sample's and input's files, and of what describes them; not TensorBoard's."""
    files = contents(folder)
    return {name: content for name, content in files.items() if not name.startswith("tensorboard/")}


def run_all(array: Array, numbers: Sequence[int]) -> None:
    """Run tasks ``numbers`` at the same time, to their ends."""
    statuses = [wait_for(process) for process in [array.start(number) for number in numbers]]
    assert statuses == [0] * len(numbers), array.log.read_text()


@pytest.fixture(scope="module")
def undisturbed(model, videos, tmp_path_factory, one_thread) -> Callable[[str], dict[str, bytes]]:  # noqa: F811
    """A function that returns the files of a job of a task that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @functools.cache
    def files(kind: str) -> dict[str, bytes]:
        run_all(Array(model, videos, folder / kind, kind, 1), [0])
        return samples(folder / kind)

    return files


def assert_same(made: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert made.keys() == expected.keys()
    assert [name for name in made if made[name] != expected[name]] == []


@fault_trials.counts(full=50, short=1)
def test_killed_tasks_of_an_array_end_with_the_same_files(count, model, videos, undisturbed, tmp_path):  # noqa: F811
    def trial(number: int) -> str:
        rng = random.Random(15_000 + number)
        kind, size, ended = KINDS[number % len(KINDS)], rng.choice(SIZES), []
        output, expected = tmp_path / f"trial-{number}", undisturbed(kind)
        array = Array(model, videos, output, kind, size)
        team = {task: array.start(task) for task in range(size)}
        for _ in range(rng.randint(1, 4)):
            task, sent = rng.choice(list(team)), rng.choice([signal.SIGKILL, signal.SIGTERM])
            goal = rng.randrange(len(expected) + 2)
            if end_after(rng, array, team.pop(task), goal, sent):
                ended.append(sent.name)
            team[task] = array.start(task)  # requeued
        assert [wait_for(process) for process in team.values()] == [0] * size, array.log.read_text()
        again = rng.choice(SIZES)  # blocks that a living task left to one that was killed then
        run_all(Array(model, videos, output, kind, again), range(again))
        assert_same(samples(output), expected)
        shutil.rmtree(output)
        return f"{kind} by {size}, then {again}: {' and '.join(sorted(set(ended))) or 'done before any signal'}"

    fault_trials.run("F15 killed tasks of a sampling array end with the same files", count, trial)


def fill_disk(rng: random.Random, array: Array, output: Path, size: int) -> None:
    """Have the disk fill up; later there is room."""
    os.system(f"mount -o remount,size={rng.randrange(8, size, 4)}k {output}")
    statuses = {wait_for(process) for process in [array.start(task) for task in range(array.size)]}
    assert statuses <= {0, 2}, array.log.read_text()
    assert "Traceback" not in array.log.read_text()
    os.system(f"mount -o remount,size={4 * size}k {output}")


def forbid_writing(rng: random.Random, array: Array, output: Path, size: int) -> None:
    """Have a job find its folder read-only, with some samples in it."""
    end_after(rng, array, array.start(0), rng.randrange(20), signal.SIGTERM)
    before = samples(output)
    os.system(f"mount -o remount,ro {output}")
    status = wait_for(array.start(0))
    last = array.log.read_text().splitlines()[-1]
    os.system(f"mount -o remount,rw {output}")
    assert status == 2 or len(before) > 60, array.log.read_text()  # a finished job need not write
    assert status == 0 or ("Read-only file system" in last and str(output) in last), last
    assert samples(output) == before


def lose_an_input(rng: random.Random, array: Array, output: Path, size: int) -> None:
    """Have an input vanish while tasks work; later it is back."""
    end_after(rng, array, array.start(0), rng.randrange(8, 20), signal.SIGKILL)
    file = array.inputs / rng.choice(["a.mp4", "sub/b.mp4", "z.mp4"])
    content = file.read_bytes()
    file.unlink()
    statuses = {wait_for(process) for process in [array.start(task) for task in range(array.size)]}
    assert statuses <= {0, 2}, array.log.read_text()
    assert "Traceback" not in array.log.read_text()
    file.write_bytes(content)


@fault_trials.counts(full=30)
def test_disks_and_inputs_that_fail_cost_a_line_and_no_sample(count, model, videos, undisturbed, tmp_path):  # noqa: F811
    faults = {"full disk": fill_disk, "read-only folder": forbid_writing, "vanished input": lose_an_input}

    def trial(number: int) -> str:
        rng = random.Random(25_000 + number)
        name = list(faults)[number % len(faults)]
        kind = "a2v" if name == "vanished input" else rng.choice(KINDS)
        output, expected = tmp_path / f"trial-{number}", undisturbed(kind)
        inputs = tmp_path / "inputs"  # of the same paths, relative to --input
        shutil.copytree(videos, inputs, dirs_exist_ok=True)
        room = sum(4 + len(content) // 1024 for content in expected.values())
        with mount_small_disk(output, 4 * room):
            array = Array(model, inputs, output, kind, rng.choice(SIZES))
            faults[name](rng, array, output, room)
            for _ in range(2):  # the second one makes what a task left to another that it took for alive
                run_all(array, range(array.size))
            made = samples(output)
        # Where inputs lie is in what describes the folder, and nowhere else.
        described = {f"{kind}.json", f"{kind}_inputs.json"}
        assert_same(*({key: files[key] for key in files.keys() - described} for files in (made, expected)))
        return f"{name}, {kind} by {array.size}"

    fault_trials.run("F15 disks and inputs that fail", count, trial)
