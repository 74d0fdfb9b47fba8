"""Runs the toy trainable as users run a trainer: in processes of its own, several of them through torchrun."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TOY = Path(__file__).with_name("toy_trainable.py")
EVERY_STEP = ("training.checkpoint_every=16", "training.keep_checkpoints=100")


@dataclass
class Finished:
    run: Path
    status: int
    output: str

    def log(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.run / "log.jsonl").read_text().splitlines()]

    def losses(self) -> dict[int, float]:
        """The losses by samples seen; a record all of whose steps were skipped has none."""
        return {record["samples_seen"]: record["loss"] for record in self.log() if "loss" in record}

    def values(self) -> dict[int, dict[str, float]]:
        """All logged values that do not depend on the machine, by samples seen."""
        names = ("time", "speed/", "memory/")
        return {
            record["samples_seen"]: {name: value for name, value in record.items() if not name.startswith(names)}
            for record in self.log()
        }

    def checkpoints(self) -> list[Path]:
        return sorted((self.run / "checkpoints").iterdir())


def assert_same_checkpoint(one: Path, other: Path, folders: tuple = ("discriminator", "engine", "weights")) -> None:
    """Assert that DeepSpeed's files of both networks and the averaged weights are the same bit for bit."""
    files = sorted(file.relative_to(one) for folder in folders for file in (one / folder).iterdir())
    assert {file.parts[0] for file in files} == {*folders}
    for file in files:
        if file.suffix == ".pt":  # the same content may be in another order of bytes
            parts = (torch.load(folder / file, weights_only=False) for folder in (one, other))
            _assert_same(str(file), *parts)
        else:
            assert (one / file).read_bytes() == (other / file).read_bytes(), file


def _assert_same(what: str, one: Any, other: Any) -> None:
    assert type(one) is type(other), what
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), what
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), what
        for key in one:
            _assert_same(f"{what}/{key}", one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), what
        for number, pair in enumerate(zip(one, other, strict=True)):
            _assert_same(f"{what}/{number}", *pair)
    elif hasattr(one, "__dict__"):
        _assert_same(what, vars(one), vars(other))
    else:
        assert one == other, what


def _tensors(what: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield what, value
    elif isinstance(value, dict):
        for key in value:
            yield from _tensors(f"{what}/{key}", value[key])
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _tensors(f"{what}/{number}", item)


def learned(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the weights, moments and averages of both networks."""
    files = sorted(checkpoint.rglob("*.pt"))
    return dict(pair for file in files for pair in _tensors(file.name, torch.load(file, weights_only=False)))


def command(run: Path, *overrides: str, processes: int = 2) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(launcher if processes > 1 else []), str(TOY), f"run={run}", *overrides]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


class Forks:
    """Runs functions of ``process_runner.py`` in one process or several, quickly."""

    def __init__(self) -> None:
        self._program = self._start()

    def __call__(self, processes: int, function: str, *arguments: Any) -> tuple[int, str]:
        """Return the exit status and the output."""
        try:
            self._program.stdin.write(json.dumps([processes, function, arguments]) + "\n")
            self._program.stdin.flush()
            status, output = json.loads(self._program.stdout.readline())
        except BaseException:  # a test timed out: its late answer would be taken for the next test's
            os.killpg(self._program.pid, signal.SIGKILL)
            self._program.wait()
            self._program = self._start()
            raise
        return status, output

    def close(self) -> None:
        self._program.stdin.close()
        self._program.wait()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.process_runner"],
            cwd=Path(__file__).parents[2],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
