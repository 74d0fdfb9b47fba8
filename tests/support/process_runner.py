"""Runs the toy, or a command, in processes forked from one that has imported everything, which saves seconds each time.

``python process_runner.py`` reads lines of JSON, [number of processes, name of a function below, its arguments], and
answers each with [exit status, output] when they have ended.
"""

import contextlib
import errno
import gc
import hashlib
import importlib
import itertools
import json
import os
import runpy
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  (DeepSpeed imports it late, and torch's compiler with it)
import torch
from torch import Tensor

# What commands import only when they run, and each fork would import for itself:
import mmldm_scale.evaluation.ablation
import mmldm_scale.sampling.job
import mmldm_scale.trainables.autoencoder.trainable
import mmldm_scale.trainables.dit.preview
import mmldm_scale.trainables.kl_vae.trainable  # noqa: F401
from data_tools import shard
from mmldm_scale import cli, config
from mmldm_scale.common import atomic_files
from mmldm_scale.trainables.dit import trainable as dit_trainable
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.training import loop
from mmldm_scale.training.checkpoint.host_copy import HostCopy
from mmldm_scale.training.checkpoint.reshard import load_resharded
from mmldm_scale.training.engine.distributed import start, stop
from mmldm_scale.training.monitoring.throughput import peak_flops
from mmldm_scale.training.trainable import Dataset, Trainable
from tests.support import toy_trainable
from tests.support.forked import end_with

LIMIT, COMMAND_LIMIT = 200, 280  # seconds after which a process is killed; below the 300 of pytest-timeout


class Recorded:
    """A data set that notes in a file which positions are read."""

    def __init__(self, dataset: Dataset, file: Path) -> None:
        self.dataset, self.file = dataset, file

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        with self.file.open("a") as file:
            file.write(f"{position}\n")
        return self.dataset[position]


def train(*overrides: str) -> int:
    """Train the toy; the positions that it reads go to ``positions`` in the run folder."""
    schema = config.load(toy_trainable.ToyTraining, [], overrides)
    if schema.stops:
        return toy_trainable.train_twice(schema)

    def build_trainable(schema: toy_trainable.ToyTraining) -> Trainable:
        trainable = toy_trainable.build_trainable(schema)
        trainable.dataset = Recorded(trainable.dataset, Path(schema.run) / "positions")
        return trainable

    return loop.train(build_trainable, schema)


class Digested:
    """A data set that notes in a file the position and a digest of every sample that is read."""

    def __init__(self, dataset: Dataset, file: Path) -> None:
        self.dataset, self.file = dataset, file

    def __getitems__(self, positions: list[int]) -> list[dict[str, Tensor]]:
        samples = self.dataset.__getitems__(positions)
        for position, sample in zip(positions, samples, strict=True):
            content = b"".join(sample[name].numpy().tobytes() for name in sorted(sample))
            with self.file.open("a") as file:
                file.write(f"{position} {hashlib.sha256(content).hexdigest()}\n")
        return samples


def train_dit(*overrides: str) -> int:
    """Train a DiT; the positions that it reads go to ``samples`` in the run folder, with digests of what is there."""

    def build_trainable(schema: DiTTraining) -> Trainable:
        trainable = dit_trainable.build_trainable(schema)
        trainable.dataset = Digested(trainable.dataset, Path(schema.run) / "samples")
        return trainable

    return loop.train(build_trainable, config.load(DiTTraining, [], overrides))


def train_on_failing_disk(fault: str, rank: int, sync: int, *overrides: str) -> int:
    """Train the toy; when ``rank`` brings something to its disk the ``sync``th time, that fails, or kills the rank."""
    done, times = atomic_files._sync, itertools.count(1)

    def fail(descriptor: int) -> None:
        if "/checkpoints" in os.readlink(f"/proc/self/fd/{descriptor}") and next(times) == sync:
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        done(descriptor)

    if int(os.environ["RANK"]) == rank:
        atomic_files._sync = fail
    return train(*overrides)


def train_until_killed(victim: int, goal: int, delay: float, *overrides: str) -> int:
    """Train the toy; rank ``victim`` is killed ``delay`` seconds after ``goal`` things were written into its folder."""
    return train_until_signalled([[victim, signal.SIGKILL, goal, delay]], *overrides)


def train_until_signalled(plan: list[tuple[int, int, int, float]], *overrides: str) -> int:
    """Train the toy, and say how it ends; for each ``[rank, signal, goal, delay]`` of ``plan`` a rank gets a signal.

    It comes ``delay`` seconds after ``goal`` things were written into the run's folder. What had been logged by then is
    in ``signalled-0`` and so on there.
    """
    run = Path(config.load(toy_trainable.ToyTraining, [], overrides).run)
    for number, (rank, sent, goal, delay) in enumerate(plan):
        target = os.getpid()
        if int(os.environ["RANK"]) == rank and os.fork() == 0:
            while os.getppid() == target and progress(run) < goal:
                time.sleep(0.001)
            time.sleep(delay)
            if os.getppid() == target:
                os.kill(target, sent)
                (run / f"signalled-{number}").write_bytes((run / "log.jsonl").read_bytes() if goal else b"")
            os._exit(0)
    status = train(*overrides)
    print(f"rank {os.environ['RANK']} ends with {status}", flush=True)
    return status


def progress(run: Path) -> int:
    """Return how much a run has written: its steps in the log and the files of its checkpoints, begun ones included."""
    log = run / "log.jsonl"
    steps = log.read_bytes().count(b"\n") if log.exists() else 0
    return steps + sum(len(files) for _, _, files in os.walk(run / "checkpoints"))


def repartition(source: str, written_by: int, to: str, *overrides: str) -> int:
    """Load the engines of the checkpoint ``source``, and save them at once to ``to``."""
    schema = config.load(toy_trainable.ToyTraining, [], [f"run={to}", *overrides])
    world = start(schema.training.collective_timeout)
    Path(to).mkdir(exist_ok=True)
    torch.manual_seed(world.rank)  # all that is not loaded differs
    trainer = loop.Trainer(toy_trainable.build_trainable(schema), schema.training, Path(to), world)
    for tag, engine in trainer.engines.items():
        load_resharded(engine, Path(source) / tag, written_by, world)
        for file, state in HostCopy().states({tag: engine}, Path(to)).items():
            file.parent.mkdir(exist_ok=True)
            torch.save(state, file)
    stop()
    return 0


def command(folder: str, *words: str) -> int:
    """Run a command of ours, as a shell in ``folder`` would."""
    os.chdir(folder)
    if words[:2] == ("python", "data_tools/shard.py"):
        return shard.main(words[2:])
    assert words[0] == "mmldm", words
    return cli.main(words[1:])


def module(folder: str, name: str, *arguments: str) -> int:
    """Run ``python -m name arguments`` of a package in ``folder``, there."""
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.argv = [name, *arguments]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def call(function: str, *arguments: str) -> int:
    """Call any other function, named "module:function", that returns an exit status."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*arguments)


def signalled(rank: int, number: int, sight: str, function: str, *arguments: Any) -> int:
    """Call another of these functions; ``rank`` gets the signal ``number`` once there is a file ``sight``."""
    target = os.getpid()
    if int(os.environ["RANK"]) == rank and os.fork() == 0:
        while os.getppid() == target and not os.path.exists(sight):
            time.sleep(0.001)
        if os.getppid() == target:
            os.kill(target, number)
        os._exit(0)
    return known()[function](*arguments)


def known() -> dict[str, Callable[..., int]]:
    """Return the functions that may be asked for, by name."""
    functions = (train, train_dit, train_on_failing_disk, train_until_killed, train_until_signalled)
    return {one.__name__: one for one in (*functions, repartition, command, module, call, signalled)}


def run(processes: int, function: str, arguments: list) -> tuple[int, str]:
    """Call one of the functions above in ``processes``; return the worst status and their output."""
    with tempfile.TemporaryFile("w+") as output:
        port = free_port()
        children = [os.fork() or child(rank, processes, port, output, function, arguments) for rank in range(processes)]
        limit = LIMIT if function.startswith("train") else COMMAND_LIMIT
        end = threading.Timer(limit, kill, [children])
        end.start()
        status = max(abs(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) for pid in children)
        end.cancel()
        output.seek(0)
        return status, output.read()


def kill(processes: list[int]) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def child(rank: int, size: int, port: int, output: IO[str], function: str, arguments: list) -> NoReturn:
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    end_with(lambda: known()[function](*arguments))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        peak_flops(torch.device("cpu"), dtype)  # measured once, and remembered by all forks
    gc.freeze()  # what is imported is no garbage: looking through it would have each fork copy it
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)
