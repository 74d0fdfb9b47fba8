"""Benchmark of checkpointing: how long training pauses if a checkpoint is written in the background or in the loop.

    python -m benchmarks.checkpointing --output benchmarks/results/checkpointing_MACHINE.json [--folder DIR]

A stack of linear layers of some 100 M parameters is trained by the real engine, ZeRO 2, on 1 process and on 2. In the
loop is the same code, waited for at once. The two take turns, with steps in between. Times are also given in steps:
those right before, for the machine may have other work. Writing takes processor time, so that steps beside it are
longer where the processor is what computes; what that adds up to is given as well. The first checkpoint is left out, in
which the memory for the copies is got from the system; its time is on its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.report import machine, publish
from mmldm_scale.config import TrainingConfig
from mmldm_scale.models import pretrained
from mmldm_scale.training.checkpoint.manager import Checkpoints
from mmldm_scale.training.checkpoint.manifest import ENGINE
from mmldm_scale.training.engine import deepspeed_engine as engines
from mmldm_scale.training.engine.distributed import World, start, stop

PROCESSES = (1, 2)
LAYERS, WIDTH = 24, 2048  # 100.7 M parameters
BATCH = 16  # samples a process takes in a step
ROUNDS = 2
STEPS = 2  # before each checkpoint


def main() -> int:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are written for the time being")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # what its own processes are started with
    args = parser.parse_args()
    if args.measure:
        measure(args.measure)
        return 0
    results: dict[str, object] = {"machine": machine("torch", "deepspeed")}
    for processes in PROCESSES:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            subprocess.run([*launch, "-m", "benchmarks.checkpointing", "--measure", folder], check=True)
            results[f"{processes} process{'es' * (processes > 1)}"] = json.loads(Path(folder, "result").read_text())
    publish(results, args.output)
    return 0


def measure(folder: Path) -> None:
    """Measure on the processes that were started; the first one writes ``folder / "result"``."""
    world = start(600.0)
    run = CheckpointBenchmark(folder, world)
    run.step()  # which makes the optimizer's state
    first = run.save_beside()
    beside, in_the_loop = [], []
    for _ in range(ROUNDS):
        beside.append(run.save_beside())
        in_the_loop.append(run.save_in_the_loop())
    if world.is_rank0:
        (folder / "result").write_text(json.dumps(summary(first, beside, in_the_loop) | {"gigabytes": run.gigabytes()}))
    run.checkpoints.close()
    stop()


class CheckpointBenchmark:
    """An engine whose steps and checkpoints are timed. Times are seconds of the slowest process."""

    def __init__(self, folder: Path, world: World) -> None:
        batch = BATCH * world.size
        settings = TrainingConfig(
            total_samples=batch,
            log_every=batch,
            checkpoint_every=batch,
            preview_every=batch,
            global_batch=batch,
            micro_batch=BATCH,
            precision="bf16" if world.device.type == "cuda" else "fp32",
            zero_stage=2,
        )
        module = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
        self.world, self.samples_seen, self.batch = world, 0, batch
        self.engine = engines.build(module, settings, world)
        self.checkpoints = Checkpoints(folder, world, replace(settings, keep_checkpoints=1), inputs={})
        self.x = torch.randn(BATCH, WIDTH, device=world.device, dtype=next(module.parameters()).dtype)

    def step(self) -> float:
        """Take an optimizer step."""
        began = self.now()
        for group in engines.base_optimizer(self.engine).param_groups:
            group["lr"], group["ema_decays"] = 1e-4, [0.99, 0.999]
        self.engine.backward(self.engine(self.x).square().mean())
        self.engine.step()
        self.samples_seen += self.batch
        return self.now() - began

    def save_beside(self) -> dict[str, float]:
        """Return how long a step takes, how long the loop stands still, and what steps beside the writing take more."""
        usual = statistics.median(self.step() for _ in range(STEPS))
        began = self.now()
        self.checkpoints.save({ENGINE: self.engine}, self.samples_seen, write_weights)
        stands = self.now() - began
        steps, checkpoint = [], self.checkpoints.folder / f"step-{self.samples_seen:012d}"
        while self.world.any(not checkpoint.exists()):
            steps.append(self.step())
        self.checkpoints.finish()
        return {"step": usual, "stands": stands, "steps": len(steps), "longer": sum(steps) - len(steps) * usual}

    def save_in_the_loop(self) -> dict[str, float]:
        """Return how long a step takes and how long the loop stands still."""
        usual = statistics.median(self.step() for _ in range(STEPS))
        began = self.now()
        self.checkpoints.save({ENGINE: self.engine}, self.samples_seen, write_weights)
        self.checkpoints.finish()
        return {"step": usual, "stands": self.now() - began}

    def now(self) -> float:
        """Return the time when all processes, and their GPUs, are done with what came before."""
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()
        self.world.barrier()
        return time.perf_counter()

    def gigabytes(self) -> float:
        """Return the size of a checkpoint."""
        files = self.checkpoints.folder.glob("step-*/**/*")
        return round(sum(file.stat().st_size for file in files if file.is_file()) / 1e9, 2)


def write_weights(folder: Path, state: dict[str, Tensor]) -> None:
    """Write the averaged weights, as trainers do."""
    pretrained.save(folder, "dit", {}, state)


def summary(
    first: dict[str, float], beside: list[dict[str, float]], in_the_loop: list[dict[str, float]]
) -> dict[str, object]:
    """Return the medians over the rounds, and how they compare."""
    ways = {"beside": beside, "in the loop": in_the_loop}
    seconds = {way: statistics.median(one["stands"] for one in found) for way, found in ways.items()}
    steps = {way: statistics.median(one["stands"] / one["step"] for one in found) for way, found in ways.items()}
    added = statistics.median((one["stands"] + one["longer"]) / one["step"] for one in beside)
    return {
        "step_seconds": round(statistics.median(one["step"] for one in [*beside, *in_the_loop]), 3),
        "stands_still_seconds": rounded(seconds),
        "stands_still_steps": rounded(steps),
        "in the loop / beside": round(seconds["in the loop"] / seconds["beside"], 1),
        "steps_beside_the_writing": statistics.median(one["steps"] for one in beside),
        "stands_still_and_longer_steps_in_steps": round(added, 2),
        "first_checkpoint": rounded(first),
    }


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Return ``values`` with three digits after the point."""
    return {name: round(value, 3) for name, value in values.items()}


if __name__ == "__main__":
    sys.exit(main())
