"""The training loop, for every trainable: one clock, ``samples_seen``, from which everything else derives.

``train()`` is what ``mmldm train`` runs on each process. It carries on from the run's newest whole checkpoint, and ends
when ``total_samples`` are seen or a signal asks it to stop.
"""

import functools
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmldm_scale.cluster import requeue, slurm
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import TrainingConfig
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.training.checkpoint import ema_snapshots
from mmldm_scale.training.checkpoint.manager import DISCRIMINATOR, ENGINE, Checkpoints, read_manifest
from mmldm_scale.training.data.loader import MicroBatches, load
from mmldm_scale.training.engine import deepspeed_engine as engines
from mmldm_scale.training.engine import ema
from mmldm_scale.training.engine.discriminator_engine import Adversary
from mmldm_scale.training.engine.distributed import GRACE, World, start, stop
from mmldm_scale.training.engine.optimizer import learning_rate
from mmldm_scale.training.engine.step_guard import Guard
from mmldm_scale.training.engine.step_module import Objective
from mmldm_scale.training.monitoring import metric_means, throughput, validation
from mmldm_scale.training.monitoring.logger import Monitor
from mmldm_scale.training.monitoring.previews import Previews
from mmldm_scale.training.monitoring.profiler import StepProfiler
from mmldm_scale.training.resilience.run_lock import locked
from mmldm_scale.training.resilience.signals import EXIT_STOPPED, StopRequest, restore_handlers
from mmldm_scale.training.resilience.step_skipping import Health, SkippedRanges, read_skipped_ranges, read_state
from mmldm_scale.training.resilience.watchdog import Watchdog
from mmldm_scale.training.run_folder import begin
from mmldm_scale.training.trainable import Trainable


def train(build_trainable: Callable[[Any], Trainable], schema: Any) -> int:
    """Run the trainable that ``build_trainable(schema)`` builds, in the folder ``schema.run``; return the exit status.

    Raises:
        UserError: the configuration, data or checkpoints cannot work.
    """
    config: TrainingConfig = schema.training
    stop_request = StopRequest()
    world = start(config.collective_timeout)
    try:
        run = Path(schema.run)
        torch.manual_seed(config.seed)  # the initial weights; all else is keyed by position
        torch.backends.cudnn.deterministic = True
        with locked(run, world):
            begin(run, schema, world)
            trainable = build_trainable(schema)
            trainer = Trainer(trainable, config, run, world)
            stopped = trainer.run(stop_request)
        if stopped:
            requeue.report_exit_status(EXIT_STOPPED)
            _queue_again(stop_request, world)
    except BaseException as error:
        restore_handlers()  # nothing is left to save: a launcher that ends this process now is to be obeyed at once
        if isinstance(error, UserError):
            requeue.report_exit_status(error.status)
        raise
    finally:
        stop()
    return EXIT_STOPPED if stopped else 0


def _queue_again(stop_request: StopRequest, world: World) -> None:
    """Requeue the SLURM job, unless SIGTERM asked to stop: a job that somebody cancelled would come back.

    All ranks wait for the first, since srun ends them all as soon as one of them exits.
    """
    if world.any(stop_request.signal not in (None, signal.SIGTERM)) and world.is_rank0 and slurm.job():
        slurm.requeue()
    world.barrier()


def _skipped_data(run: Path, world: World) -> SkippedRanges:
    """Return the data that ``run`` leaves out, on all processes what the first one reads."""
    found: SkippedRanges | UserError | None = None
    if world.is_rank0:
        try:
            found = read_skipped_ranges(run)
        except UserError as error:
            found = error
    found = world.broadcast_from_rank0(found)
    if isinstance(found, UserError):
        raise found
    return found


class Trainer:
    """One run on this process."""

    def __init__(self, trainable: Trainable, config: TrainingConfig, run: Path, world: World) -> None:
        if config.validate_every and trainable.validation is None:
            fits = "validation=DIR fits an autoencoder or a dit, else 0"
            raise UserError(f"training.validate_every: there is nothing to validate on; {fits}")
        self.validate_every = (config.validate_every or config.checkpoint_every) if trainable.validation else 0
        self.trainable, self.config, self.folder, self.world = trainable, config, run, world
        self.adversary = Adversary(trainable.discriminator, config, world) if trainable.discriminator else None
        self.objective = Objective(trainable, self.adversary)
        self.engine = engines.build(trainable.module, config, world)
        self.guard = Guard(self.engine)
        self.saved_engines = {ENGINE: self.engine} | ({DISCRIMINATOR: self.adversary.engine} if self.adversary else {})
        timeout = config.collective_timeout + GRACE
        self.checkpoints = Checkpoints(
            run, world, config.keep_checkpoints, trainable.inputs, config.keep_every, timeout
        )
        self.skipped_data = _skipped_data(run, world)
        self.watchdog = Watchdog(run, world, config.collective_timeout)
        self.previews = Previews(trainable, self.engine, world, self.watchdog)
        self.profile = StepProfiler(run, config.profile_steps if world.is_rank0 else 0)
        for remark in trainable.startup_messages:
            self._say(remark)
        self._begin(self.checkpoints.newest())

    def _begin(self, checkpoint: Path | None) -> None:
        """Put everything to where ``checkpoint`` stands, or to the start."""
        config, world = self.config, self.world
        self.samples_seen = self.checkpoints.load(self.saved_engines, checkpoint) if checkpoint else 0
        state = read_state(checkpoint) if checkpoint else None
        self.health = Health(config.skip_limit, config.spike_factor, state)
        self.saved = self.samples_seen
        self.monitor = Monitor(self.folder, self.samples_seen, config.total_samples) if world.is_rank0 else None
        self.batches = self._micro_batches()
        peak = throughput.peak_flops(world.device, DTYPES[config.precision]) * world.size
        self.meter = throughput.Meter(self.trainable.flops_per_sample, peak, self.samples_seen)
        if checkpoint:
            self._say(f"carrying on from {self.samples_seen:,} of {config.total_samples:,} samples")

    def run(self, stop_request: StopRequest) -> bool:
        """Train to the end or to a stop_request to stop; return whether it stopped early.

        Raises:
            UserError: too many steps in a row were skipped, and going back to a checkpoint cannot help; or a checkpoint
                cannot be written, for another reason than a full disk.
        """
        with self.watchdog:
            try:
                return self._run(stop_request)
            except BaseException:
                restore_handlers()  # as in train(): what is being written is waited for, unless the launcher ends it
                raise
            finally:
                self.profile.close()
                self.checkpoints.close()

    def _run(self, stop_request: StopRequest) -> bool:
        config = self.config
        while self.samples_seen < config.total_samples:
            values, stopping = self._step(stop_request)
            self.profile.step(self.samples_seen)
            if self.health.failed:
                self._go_back()
                continue
            done = self.samples_seen == config.total_samples
            saving = done or stopping or (self._due(config.checkpoint_every) and not self.health.streak)
            validated = self._validate(done) if self.validate_every else {}
            if saving or validated or self._due(config.log_every):
                self._log(values, validated)
            if config.ema_snapshot_every and (done or self._due(config.ema_snapshot_every)) and self._learned():
                ema_snapshots.write(self.folder, self.engine, self.samples_seen, self.world)
            if saving:
                with self.meter.standing("saving"):
                    self._save()
            if (done or self._due(config.preview_every)) and not stopping:  # while the checkpoint is being written
                with self.meter.standing("preview"):
                    self.previews.show(self.samples_seen, self.monitor, averaged=self._learned())
            if done or stopping:
                self._finish_saving()
            if done and self.saved != self.samples_seen and self._learned():
                raise UserError(f"{self.folder}: the end is not saved; run the same command again to carry on")
            if stopping and not done:
                at, name = (
                    f"at {self.samples_seen:,} samples",
                    stop_request.signal.name if stop_request else "a signal to another rank",
                )
                self._say(f"stopping {at} after {name}; {'saved' if self.saved == self.samples_seen else 'not saved'}")
                return True
        if self.monitor:
            self.monitor.close()
        return False

    def _micro_batches(self) -> Iterator[dict[str, Tensor]]:
        config, world = self.config, self.world
        positions = MicroBatches(
            self.samples_seen,
            config.total_samples,
            config.global_batch,
            config.micro_batch,
            world.rank,
            world.size,
            self.skipped_data,
        )
        on_gpu = world.device.type == "cuda"
        timeout = config.collective_timeout + GRACE
        return load(self.trainable.dataset, positions, config.workers, on_gpu, timeout, self.watchdog.worker_stacks)

    def _step(self, stop_request: StopRequest) -> tuple[dict[str, list[Tensor]], bool]:
        """Take one optimizer step, or skip it.

        Returns: each micro-batch's per-sample values, still on the device; whether any process is to stop.
        """
        self._begin_step()
        values: dict[str, list[Tensor]] = {}
        stopping, last = False, self.engine.gradient_accumulation_steps() - 1
        for micro in range(last + 1):
            began = time.perf_counter()
            self.watchdog.heartbeat("data", self.samples_seen)
            batch = next(self.batches)
            self.watchdog.heartbeat("step", self.samples_seen)
            self.meter.waited(time.perf_counter() - began)
            results = self.engine({k: v.to(self.world.device, non_blocking=True) for k, v in batch.items()})
            exhibits = results.pop("exhibits", None)
            self.guard.watch(results["loss"].detach())
            self.engine.backward(results["loss"].mean())
            if exhibits:
                results |= self.adversary.learn(**exhibits)
            for name, result in results.items():
                values.setdefault(name, []).append(result.detach())
            if micro == last:
                stopping, loss, objection = self._judge(values["loss"], stop_request)
            self.engine.step()
            if exhibits:
                self.adversary.guard.closed = self.guard.closed
                self.adversary.engine.step()
        self.samples_seen += self.config.global_batch
        self._record(loss, objection)
        return values, stopping

    def _judge(self, losses: list[Tensor], stop_request: StopRequest) -> tuple[bool, float, str | None]:
        """Decide with all processes, in one exchange, on the step whose gradients are there.

        Returns: whether any process is to stop, the mean loss, and why the step is not to be taken, if it is not.

        Raises:
            UserError: a checkpoint that was being written cannot be.
        """
        finite = self.guard.finite() and (not self.adversary or self.adversary.guard.finite())
        loss = torch.stack(losses).double().sum().item() if finite else 0.0
        stop_requests, broken, failures, total = self.world.sum(
            [bool(stop_request), not finite, self.checkpoints.failed, loss]
        )
        if failures:
            self._finish_saving()  # which raises on all processes, since all know of it by now
        mean = total / self.config.global_batch
        objection = self.health.objection(int(broken), mean)
        self.guard.closed, self.guard.highest_norm = objection is not None, self.health.highest_norm
        return stop_requests > 0, mean, objection

    def _record(self, loss: float, objection: str | None) -> None:
        """Remember how the step just done went, and say so if it was skipped."""
        norm = None
        if self.config.spike_factor:  # else nobody asks, and to ask is to wait for the device
            norm = engines.gradient_norm(self.engine).get("gradient_norm")
        if not self.guard.closed:
            self.health.taken(loss, norm)
            return
        self.health.skipped()
        reason = objection or f"its gradient norm {norm:.4g} is a spike, above {self.guard.highest_norm:.4g}"
        self._say(f"skipped the step to {self.samples_seen:,} samples: {reason} ({self.health.streak} in a row)")

    def _go_back(self) -> None:
        """Go back to the last checkpoint, and from there on leave out the data up to here.

        Raises:
            UserError: there is none, or the run went back to it before.
        """
        self._finish_saving()
        self.watchdog.heartbeat("way back", self.samples_seen)
        limit, checkpoint = self.config.skip_limit, self.checkpoints.newest()
        failure = f"{self.folder}: {limit} steps in a row were skipped up to {self.samples_seen:,} samples"
        if checkpoint is None:
            raise UserError(f"{failure}, before the first checkpoint; look at the data, learning rate and precision")
        samples_seen = read_manifest(checkpoint).samples_seen
        if self.skipped_data.went_back_to(samples_seen):
            raise UserError(
                f"{failure}, and again after going back to {checkpoint.name} and leaving data out; remove "
                "that checkpoint to begin from the one before"
            )
        self.skipped_data = self.skipped_data.skipping(samples_seen, self.skipped_data.position(self.samples_seen))
        if self.world.is_rank0:
            self.skipped_data.write(self.folder)
            self.monitor.close()
        self.world.barrier()
        self._say(f"{failure}; going back to {checkpoint.name}, and on from there behind that data")
        self._begin(checkpoint)

    def _begin_step(self) -> None:
        """Set what depends on the clock for the optimizer step that begins now."""
        config, end = self.config, self.samples_seen + self.config.global_batch
        for group in engines.base_optimizer(self.engine).param_groups:
            group["lr"] = learning_rate(config.learning_rate, config.warmup_samples, end)
            group["ema_decays"] = [
                ema.decay(ema.exponent(length), config.global_batch, end) for length in config.ema_lengths
            ]
        intervals = (config.log_every, config.checkpoint_every, self.validate_every, config.total_samples)
        self.guard.begin_step()
        self.objective.begin_step(
            self.samples_seen, logged=any(interval and end % interval == 0 for interval in intervals)
        )

    def _validate(self, done: bool) -> dict[str, float]:
        """Return the losses on the held-out samples, if it is time for them."""
        if not (done or self._due(self.validate_every)):
            return {}
        with self.meter.standing("validation"):
            alive = functools.partial(self.watchdog.heartbeat, "validation", self.samples_seen)
            return validation.evaluate(
                self.engine, self.trainable.validation, self.config.micro_batch, self.world, alive
            )

    def _log(self, values: dict[str, list[Tensor]], validated: dict[str, float]) -> None:
        """Log the means over the global batch just done, where they are finite, and the speed since the last time."""
        names = sorted(values)
        sums = torch.stack([metric_means.sums(values[name]) for name in names])  # (names, 2), still on the device
        found = metric_means.means(names, self.world.sum(sums.flatten().tolist()))
        if self.monitor:
            logged = found | validated | self._scalars() | self.meter.read(self.samples_seen)
            finite = {name: value for name, value in logged.items() if math.isfinite(value)}  # a skipped step's are not
            self.monitor.scalars(self.samples_seen, finite)

    def _scalars(self) -> dict[str, float]:
        """Return what all processes know alike of the step just done."""
        group = engines.base_optimizer(self.engine).param_groups[0]
        training = {"learning_rate": group["lr"], **engines.gradient_norm(self.engine)}
        for length, decay in zip(self.config.ema_lengths, group["ema_decays"], strict=True):
            training[f"ema_decay_{length}"] = decay
        training |= engines.loss_scale(self.engine)
        training["skipped_steps"] = float(self.health.skipped_steps)
        training["skipped_samples"] = float(
            self.skipped_data.count_skipped(self.samples_seen - self.config.global_batch)
        )
        scalars = {f"training/{name}": value for name, value in training.items()}
        scalars |= {f"weight/{name}": weight for name, weight in self.objective.weights.items()}
        if self.adversary:
            scalars |= self.adversary.scalars()
        if self.trainable.quarantine is not None:
            scalars["data/quarantined"] = float(len(self.trainable.quarantine))
        return scalars

    def _save(self) -> None:
        """Begin to write a checkpoint, once the one before stands."""
        self._finish_saving()
        if self.saved == self.samples_seen or not self._learned():
            return
        health = self.health.state()

        def write_weights(folder: Path, state: dict[str, Tensor]) -> None:
            self.trainable.write_weights(folder, state)
            health.write(folder.parent)

        self.checkpoints.save(self.saved_engines, self.samples_seen, write_weights)

    def _finish_saving(self) -> None:
        """Wait for the checkpoint that is being written, if there is one."""
        self.watchdog.heartbeat("saving", self.samples_seen)
        self.saved = self.checkpoints.finish() or self.saved

    def _learned(self) -> bool:
        """Return whether any step was taken yet: before, there are no averages to write."""
        return self.health.skipped_steps * self.config.global_batch < self.samples_seen

    def _due(self, interval: int) -> bool:
        return self.samples_seen % interval == 0

    def _say(self, line: str) -> None:
        if self.world.is_rank0:
            print(line, file=sys.stderr, flush=True)
