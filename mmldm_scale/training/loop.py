"""The training loop, for every task: one clock, ``samples_seen``, from which everything else derives.

``train()`` is what ``mmldm train`` runs on each process. It carries on from the run's newest whole checkpoint, and ends
when ``total_samples`` are seen or a signal asks it to stop.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmldm_scale.cluster import slurm
from mmldm_scale.config import TrainingConfig
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.training import ema, snapshots, speed
from mmldm_scale.training import engine as engines
from mmldm_scale.training.adversary import Adversary
from mmldm_scale.training.checkpoint import DISCRIMINATOR, ENGINE, Checkpoints
from mmldm_scale.training.data import MicroBatches, load
from mmldm_scale.training.distributed import World, start, stop
from mmldm_scale.training.monitor import Monitor
from mmldm_scale.training.objective import Objective
from mmldm_scale.training.optimizer import learning_rate
from mmldm_scale.training.run import begin
from mmldm_scale.training.signals import EXIT_STOPPED, StopRequest, restore_handlers
from mmldm_scale.training.task import Task


def train(build_task: Callable[[Any], Task], schema: Any) -> int:
    """Run the task that ``build_task(schema)`` builds, in the folder ``schema.run``; return the exit status.

    Raises:
        UserError: the configuration, data or checkpoints cannot work.
    """
    config: TrainingConfig = schema.training
    wish = StopRequest()
    world = start(config.collective_timeout)
    try:
        run = Path(schema.run)
        begin(run, schema, world)
        torch.manual_seed(config.seed)  # the initial weights; all else is keyed by position
        torch.backends.cudnn.deterministic = True
        task = build_task(schema)
        trainer = Trainer(task, config, run, world)
        stopped = trainer.run(wish)
        if stopped:
            _queue_again(wish, world)
    except BaseException:
        restore_handlers()  # nothing is left to save: a launcher that ends this process now is to be obeyed at once
        raise
    finally:
        stop()
    return EXIT_STOPPED if stopped else 0


def _queue_again(wish: StopRequest, world: World) -> None:
    """Requeue the SLURM job, unless SIGTERM asked to stop: a job that somebody cancelled would come back.

    All ranks wait for the first, since srun ends them all as soon as one of them exits.
    """
    if world.any(wish.signal not in (None, signal.SIGTERM)) and world.first and slurm.job():
        slurm.requeue()
    world.barrier()


class Trainer:
    """One run on this process."""

    def __init__(self, task: Task, config: TrainingConfig, run: Path, world: World) -> None:
        self.task, self.config, self.folder, self.world = task, config, run, world
        self.adversary = Adversary(task.discriminator, config, world) if task.discriminator else None
        self.objective = Objective(task, self.adversary)
        self.engine = engines.build(task.module, config, world)
        self.saved_engines = {ENGINE: self.engine} | ({DISCRIMINATOR: self.adversary.engine} if self.adversary else {})
        self.checkpoints = Checkpoints(run, world, config.keep_checkpoints, task.inputs)
        newest = self.checkpoints.newest()
        self.samples_seen = self.checkpoints.load(self.saved_engines, newest) if newest else 0
        self.saved = self.samples_seen
        self.monitor = Monitor(run, self.samples_seen, config.total_samples) if world.first else None

    def run(self, wish: StopRequest) -> bool:
        """Train to the end or to a wish to stop; return whether it stopped early."""
        config = self.config
        batches = self._micro_batches()
        if self.samples_seen:
            self._say(f"carrying on from {self.samples_seen:,} of {config.total_samples:,} samples")
        peak = speed.peak_flops(self.world.device, DTYPES[config.precision]) * self.world.size
        self.meter = speed.Meter(self.task.flops_per_sample, peak, self.samples_seen)
        while self.samples_seen < config.total_samples:
            values = self._step(batches)
            done = self.samples_seen == config.total_samples
            stopping = self.world.any(bool(wish))
            saving = done or stopping or self._due(config.checkpoint_every)
            if saving or self._due(config.log_every):
                self._log(values)
            if done or self._due(config.preview_every):
                self._preview()
            if config.ema_snapshot_every and (done or self._due(config.ema_snapshot_every)):
                snapshots.write(self.folder, self.engine, self.samples_seen, self.world)
            if saving:
                self._save()
            if stopping and not done:
                self._say(f"stopping at {self.samples_seen:,} samples after {wish.signal and wish.signal.name}; saved")
                return True
        if self.monitor:
            self.monitor.close()
        return False

    def _micro_batches(self) -> Iterator[dict[str, Tensor]]:
        config, world = self.config, self.world
        positions = MicroBatches(
            self.samples_seen, config.total_samples, config.global_batch, config.micro_batch, world.rank, world.size
        )
        on_gpu = world.device.type == "cuda"
        return load(self.task.dataset, positions, config.workers, on_gpu, config.collective_timeout)

    def _step(self, batches: Iterator[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
        """Take one optimizer step; return each micro-batch's per-sample values, still on the device."""
        self._begin_step()
        values: dict[str, list[Tensor]] = {}
        for _ in range(self.engine.gradient_accumulation_steps()):
            began = time.perf_counter()
            batch = next(batches)
            self.meter.waited(time.perf_counter() - began)
            results = self.engine({k: v.to(self.world.device, non_blocking=True) for k, v in batch.items()})
            exhibits = results.pop("exhibits", None)
            self.engine.backward(results["loss"].mean())
            self.engine.step()
            if exhibits:
                results |= self.adversary.learn(**exhibits)
            for name, result in results.items():
                values.setdefault(name, []).append(result.detach())
        self.samples_seen += self.config.global_batch
        return values

    def _begin_step(self) -> None:
        """Set what depends on the clock for the optimizer step that begins now."""
        config, end = self.config, self.samples_seen + self.config.global_batch
        for group in engines.base_optimizer(self.engine).param_groups:
            group["lr"] = learning_rate(config.learning_rate, config.warmup_samples, end)
            group["ema_decays"] = [
                ema.decay(ema.exponent(length), config.global_batch, end) for length in config.ema_lengths
            ]
        intervals = (config.log_every, config.checkpoint_every, config.total_samples)
        self.objective.begin_step(self.samples_seen, logged=any(end % interval == 0 for interval in intervals))

    def _log(self, values: dict[str, list[Tensor]]) -> None:
        """Log the means over the global batch just done, and the run's speed since the last time."""
        names = sorted(values)
        sums = self.world.sum([torch.stack(values[name]).double().sum().item() for name in names])
        means = {name: total / self.config.global_batch for name, total in zip(names, sums, strict=True)}
        if not all(map(torch.isfinite, torch.tensor(list(means.values())))):
            raise FloatingPointError(f"not finite at {self.samples_seen:,} samples: {means}; nothing saved from here")
        if self.monitor:
            self.monitor.scalars(self.samples_seen, means | self._scalars() | self.meter.read(self.samples_seen))

    def _scalars(self) -> dict[str, float]:
        """Return what all processes know alike of the step just done."""
        group = engines.base_optimizer(self.engine).param_groups[0]
        training = {"learning_rate": group["lr"], **engines.gradient_norm(self.engine)}
        for length, decay in zip(self.config.ema_lengths, group["ema_decays"], strict=True):
            training[f"ema_decay_{length}"] = decay
        scalars = {f"training/{name}": value for name, value in training.items()}
        scalars |= {f"weight/{name}": weight for name, weight in self.objective.weights.items()}
        if self.adversary:
            scalars |= self.adversary.scalars()
        if self.task.quarantine is not None:
            scalars["data/quarantined"] = float(len(self.task.quarantine))
        return scalars

    def _preview(self) -> None:
        if self.task.preview is None:
            return
        self.engine.eval()
        with torch.no_grad():
            writer = self.monitor.media(self.samples_seen) if self.monitor else Unseen()
            self.task.preview(self.engine.module, writer)
        self.engine.train()

    def _save(self) -> None:
        if self.saved != self.samples_seen:
            self.checkpoints.save(self.saved_engines, self.samples_seen, self.task.write_weights)
            self.saved = self.samples_seen

    def _due(self, interval: int) -> bool:
        return self.samples_seen % interval == 0

    def _say(self, line: str) -> None:
        if self.world.first:
            print(line, file=sys.stderr, flush=True)


class Unseen:
    """The preview of the ranks that do not write: nothing."""

    def image(self, *_: Any) -> None:
        """Show nothing."""

    video = audio = image
