"""The training loop of every trainable: one clock, ``samples_seen``, from which everything else derives.

:func:`train` is what ``mmldm train`` runs on each process. It resumes from the run's newest whole checkpoint, and ends
when ``training.total_samples`` samples are seen or a signal asks it to stop. Read :meth:`Trainer.run` first.
"""

import functools
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from mmldm_scale.cluster import requeue, slurm
from mmldm_scale.common.errors import LostContact, UserError
from mmldm_scale.config import ShardTraining, TrainingConfig
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.training import initial_weights
from mmldm_scale.training.checkpoint import ema_snapshots, weights_origin
from mmldm_scale.training.checkpoint.manager import Checkpoints, HasState
from mmldm_scale.training.checkpoint.manifest import DISCRIMINATOR, ENGINE, read_manifest
from mmldm_scale.training.clock import Clock
from mmldm_scale.training.data.loader import MicroBatches, load
from mmldm_scale.training.engine import deepspeed_engine, deepspeed_internals, ema
from mmldm_scale.training.engine.discriminator_engine import DiscriminatorEngine
from mmldm_scale.training.engine.distributed import GRACE, World, is_lost_contact, start, stop
from mmldm_scale.training.engine.optimizer import learning_rate
from mmldm_scale.training.engine.step_guard import StepGuard
from mmldm_scale.training.monitoring import scalars, throughput, validation
from mmldm_scale.training.monitoring.announcements import Sizes, Start, closing, opening
from mmldm_scale.training.monitoring.interval_means import IntervalMeans, step_means
from mmldm_scale.training.monitoring.logger import Logger
from mmldm_scale.training.monitoring.previews import Previews
from mmldm_scale.training.monitoring.profiler import StepProfiler
from mmldm_scale.training.resilience.run_lock import RunLock, locked
from mmldm_scale.training.resilience.signals import EXIT_STOPPED, StopRequest, restore_handlers
from mmldm_scale.training.resilience.step_skipping import StepSkipping, read_skipped_ranges_on_rank0
from mmldm_scale.training.resilience.watchdog import Watchdog
from mmldm_scale.training.run_folder import SameFolder, begun
from mmldm_scale.training.step import MicroStep, Step
from mmldm_scale.training.trainable import Batch, StepInfo, Trainable


def train(build_trainable: Callable[[Any], Trainable], config: ShardTraining, source: str = "") -> int:
    """Train what ``build_trainable(config)`` returns, in the folder ``config.run``; return the exit status.

    Args:
        source: where the configuration comes from, such as "preset L"; printed at the start.

    Raises:
        UserError: the configuration, data or checkpoints cannot work.
        LostContact: another rank failed.
    """
    stop_request = StopRequest()
    world = start(config.training.collective_timeout)
    try:
        run = Path(config.run)
        torch.manual_seed(config.training.seed)  # of the initial weights; all else is keyed by position
        torch.backends.cudnn.deterministic = True
        with locked(run, world) as lock, begun(run, config, world):
            trainable = initial_weights.build(build_trainable, config, world)
            sizes = Sizes.of(trainable)
            trainer = Trainer(trainable, config.training, run, world, lock)
            if trainer.logger and not trainer.is_done:
                print(
                    *opening(trainable, sizes, config, world, trainer.samples_seen, source), sep="\n", file=sys.stderr
                )
                trainer.logger.configuration(config)
            is_stopped = trainer.run(stop_request)
        if is_stopped:
            requeue.report_exit_status(EXIT_STOPPED)
            _requeue_job(stop_request, world)
    except BaseException as error:
        restore_handlers()  # nothing is left to save: a launcher that ends this process now must be obeyed at once
        if isinstance(error, UserError):
            requeue.report_exit_status(error.status)
        if is_lost_contact(error):
            raise LostContact(str(error)) from error
        raise
    finally:
        stop()
    return EXIT_STOPPED if is_stopped else 0


def _requeue_job(stop_request: StopRequest, world: World) -> None:
    """Requeue the SLURM job, unless SIGTERM or Ctrl-C asked to stop: then somebody cancelled it.

    All ranks wait for rank 0, since srun ends them all as soon as one of them exits.
    """
    if world.any(stop_request.signal not in (None, signal.SIGTERM, signal.SIGINT)) and world.is_rank0 and slurm.job():
        slurm.requeue()
    world.barrier()


class Trainer:
    """One run on this process.

    Args:
        lock: held on ``run``; None: nobody else uses it.
    """

    def __init__(
        self, trainable: Trainable, config: TrainingConfig, run: Path, world: World, lock: RunLock | None = None
    ) -> None:
        if config.validate_every and trainable.validation is None:
            raise UserError("training.validate_every: must be 0 without held-out sets; validation=DIR names them")
        self.trainable, self.config, self.folder, self.world = trainable, config, run, world
        self.same_folder = SameFolder(run, world, lock)
        self.validate_every = (config.validate_every or config.checkpoint_every) if trainable.validation else 0
        self._build_engines()
        self.skipped_data = read_skipped_ranges_on_rank0(run, world)
        self.interval = IntervalMeans(world)
        states: dict[str, HasState] = {"step_skipping": self.skipping, "interval_means": self.interval}
        self.checkpoints = Checkpoints(run, world, config, trainable.inputs, states)
        self.save_clock, self.preview_clock = Clock(config.checkpoint_minutes), Clock(config.preview_minutes)
        self.watchdog = Watchdog(run, world, config.collective_timeout)
        self.previews = Previews(trainable, self.engine, world, self.watchdog)
        self.profiler = StepProfiler(run, config.profile_steps if world.is_rank0 else 0)
        self._print(*trainable.startup_messages)
        self._resume(self.checkpoints.newest())
        self.start = Start(self.samples_seen, time.monotonic())
        self.last_loss: float | None = None  # mean over the last step; None before the first

    def _build_engines(self) -> None:
        """Build the model's engine and the discriminator's, and what takes a step with them."""
        trainable, config = self.trainable, self.config
        self.engine = deepspeed_engine.build(trainable.module, config, self.world)
        self.optimizer = deepspeed_engine.base_optimizer(self.engine)
        self.guard = StepGuard(self.engine)
        self.engines, guards = {ENGINE: self.engine}, [self.guard]
        self.discriminator: DiscriminatorEngine | None = None
        if trainable.discriminator:
            self.discriminator = DiscriminatorEngine(trainable.discriminator, config, self.world, self.guard)
            self.engines[DISCRIMINATOR] = self.discriminator.engine
            guards.append(self.discriminator.guard)
        self.skipping = StepSkipping(config, guards)
        self.micro_step = MicroStep(
            self.engine,
            self.engine.backward,
            trainable.term_weights,
            self.discriminator,
            functools.partial(deepspeed_internals.inner_backward, trainable.module),
        )

    def _resume(self, checkpoint: Path | None) -> None:
        """Set everything to ``checkpoint``, or to the start of the run if it is None."""
        config, world = self.config, self.world
        self.samples_seen = self.checkpoints.load(self.engines, checkpoint) if checkpoint else 0
        self.saved_at = self.started_at = self.samples_seen
        self.logger = Logger(self.folder, self.samples_seen, config.total_samples) if world.is_rank0 else None
        self.batches = self._micro_batches()
        peak = throughput.peak_flops(world.device, DTYPES[config.precision]) * world.size  # FLOP/s
        self.meter = throughput.ThroughputMeter(self.trainable.flops_per_sample, peak, self.samples_seen)
        if checkpoint:
            self._print(f"resuming from {self.samples_seen:,} of {config.total_samples:,} samples")

    def run(self, stop_request: StopRequest) -> bool:
        """Train to the end, or until a signal asks to stop; return whether it stopped early.

        Raises:
            UserError: too many steps in a row were skipped, and going back to a checkpoint cannot help; or a checkpoint
                cannot be written, for another reason than a full disk.
        """
        is_stopped = False
        with self.watchdog:
            try:
                while not (self.is_done or is_stopped):
                    step = self._step(stop_request)
                    self.profiler.step(self.samples_seen)
                    if self.skipping.must_go_back:
                        self._go_back()
                        continue
                    self._between_steps(step)
                    is_stopped = step.must_stop and not self.is_done
            except BaseException:
                restore_handlers()  # as in train(); a checkpoint being written is finished unless the launcher kills us
                raise
            finally:
                self.profiler.close()
                self.checkpoints.close()
        if self.logger:
            self.logger.close()
            reason = (stop_request.name or "a signal to another rank") if is_stopped else ""
            reached = (self.samples_seen, self.config.total_samples, self.last_loss)
            self._print(*closing(self.folder, self.start, *reached, reason))
        return is_stopped

    # --- one optimizer step ------------------------------------------------------------------------------------------

    def _step(self, stop_request: StopRequest) -> Step:
        """Take one optimizer step, or skip it."""
        self._begin_step()
        step = Step()
        accumulation = self.engine.gradient_accumulation_steps()
        for micro in range(accumulation):
            for tag, value in self.micro_step(self._next_batch()).items():
                step.values.setdefault(tag, []).append(value)
            self.guard.watch(step.values["loss"][-1])
            if micro == accumulation - 1:
                self._decide(step, stop_request)
            self.engine.step()
            if self.discriminator:
                self.discriminator.step()
        self.samples_seen += self.config.global_batch
        if self._finish_step():
            self.interval.add(step.values)
        return step

    def _begin_step(self) -> None:
        """Set what depends on the clock for the optimizer step that begins."""
        config, end = self.config, self.samples_seen + self.config.global_batch
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.learning_rate, config.warmup_samples, end)
            group["ema_decays"] = [
                ema.decay(ema.exponent(length), config.global_batch, end) for length in config.ema_lengths
            ]
        self.skipping.begin_step()
        if self.discriminator:
            self.discriminator.begin_step(self.samples_seen)
        if self.trainable.begin_step:
            adversarial = self.discriminator is not None and self.discriminator.is_active
            self.trainable.begin_step(StepInfo(self.samples_seen, self._is_logged(end), adversarial))

    def _next_batch(self) -> Batch:
        began = time.perf_counter()
        self.watchdog.heartbeat("data", self.samples_seen)
        batch = next(self.batches)
        self.watchdog.heartbeat("step", self.samples_seen)
        self.meter.add_data_wait(time.perf_counter() - began)
        return {name: tensor.to(self.world.device, non_blocking=True) for name, tensor in batch.items()}

    def _decide(self, step: Step, stop_request: StopRequest) -> None:
        """Decide with all processes, in one exchange, whether ``step`` is skipped, and what follows it.

        The first process's clock is the one that counts.

        Raises:
            UserError: a checkpoint that was being written cannot be.
        """
        is_finite, is_rank0 = self.skipping.is_finite(), self.world.is_rank0
        loss = torch.stack(step.values["loss"]).double().sum().item() if is_finite else 0.0
        must_save = is_rank0 and self.save_clock.is_due and not self.checkpoints.is_writing
        must_show = is_rank0 and self.preview_clock.is_due
        flags = [stop_request.signal is not None, must_save, must_show, self.checkpoints.failed]
        *sums, failures, non_finite_ranks, total = self.world.sum([*flags, not is_finite, loss])
        step.must_stop, step.must_save, step.must_show = (count > 0 for count in sums)
        stop_request.watch_ctrl_c(self.folder)  # from the first step on, in which all processes are by now
        if failures:
            self._finish_saving()  # raises on all processes, since all know of the failure by now
        self.last_loss = total / self.config.global_batch
        self.skipping.decide(int(non_finite_ranks), self.last_loss)

    def _finish_step(self) -> bool:
        """Record the step, and print why it was skipped if it was; return whether it was taken."""
        # Without spike_factor nothing depends on the norm, and to ask for it is to wait for the device.
        norm = deepspeed_engine.gradient_norm(self.engine) if self.config.spike_factor else None
        reason = self.skipping.finish_step(norm)
        if reason:
            count = self.skipping.consecutive_skips
            self._print(f"skipped the step to {self.samples_seen:,} samples: {reason} ({count} in a row)")
        return reason is None

    # --- between two steps -------------------------------------------------------------------------------------------

    def _between_steps(self, step: Step) -> None:
        """Validate, log, save and show what is due after ``step``."""
        config, is_ending = self.config, self.is_done or step.must_stop
        is_due_to_save = step.must_save or self._is_due(config.checkpoint_every)
        must_save = is_ending or (is_due_to_save and not self.skipping.consecutive_skips)
        validated = self._validate()
        if self._is_logged(self.samples_seen):
            self._log(validated)
        elif self.samples_seen == self.started_at + config.global_batch:
            self._print_first_step(step)
        if config.ema_snapshot_every and self._is_due(config.ema_snapshot_every) and self._has_learned:
            ema_snapshots.write(self.folder, self.engine, self.samples_seen, self.world)
        if must_save:
            with self.meter.paused("saving"):
                self._save()
        if (
            step.must_show or self._is_due(config.preview_every)
        ) and not step.must_stop:  # while a checkpoint is written
            with self.meter.paused("preview"):
                self.previews.show(self.samples_seen, self.logger, averaged=self._has_learned)
            self.preview_clock.restart()
        if is_ending:
            self._finish_saving()
        if self.is_done and self.saved_at != self.samples_seen and self._has_learned:
            raise UserError(f"{self.folder}: the end is not saved; run the same command again to resume")

    @property
    def is_done(self) -> bool:
        """Whether the run has seen all of its samples."""
        return self.samples_seen >= self.config.total_samples

    @property
    def _has_learned(self) -> bool:
        """Whether any step was taken yet: before, there are no averages to write."""
        return self.skipping.skipped_steps * self.config.global_batch < self.samples_seen

    def _is_due(self, interval: int) -> bool:
        """Return whether an action that is done every ``interval`` samples, and at the end, is due."""
        return self.is_done or self.samples_seen % interval == 0

    def _validate(self) -> dict[str, float]:
        """Return the losses on the held-out samples, if they are due."""
        held_out = self.trainable.validation
        if held_out is None or not self._is_due(self.validate_every):
            return {}
        with self.meter.paused("validation"):
            heartbeat = functools.partial(self.watchdog.heartbeat, "validation", self.samples_seen)
            weights, size = self.trainable.term_weights, self.config.micro_batch
            return validation.evaluate(self.engine, held_out, weights, size, self.world, heartbeat)

    def _is_logged(self, samples_seen: int) -> bool:
        """Return whether there is a record at ``samples_seen``: at the first step's end and each interval's."""
        config = self.config
        intervals = (config.log_every, config.checkpoint_every, self.validate_every, config.total_samples)
        is_first = samples_seen == config.global_batch
        return is_first or any(interval and samples_seen % interval == 0 for interval in intervals)

    def _log(self, validated: dict[str, float]) -> None:
        """Log the means over the samples since the last record, and what is known of the last step."""
        self.same_folder.check()
        means = self.interval.take()
        if self.logger:
            self.logger.scalars(self.samples_seen, means | validated | self._scalars())

    def _scalars(self) -> dict[str, float]:
        """Return what is logged besides the module's values."""
        before = self.samples_seen - self.config.global_batch
        values = scalars.of_engine(self.engine, self.config.ema_lengths, self.micro_step.term_weights)
        values |= scalars.of_skipping(self.skipping.skipped_steps, self.skipped_data.count_skipped(before))
        if self.discriminator:
            values |= self.discriminator.scalars()
        if self.trainable.quarantine is not None:
            values["data/quarantined"] = float(len(self.trainable.quarantine))
        return values | self.meter.read(self.samples_seen)

    def _print_first_step(self, step: Step) -> None:
        """Print the losses of the first step after a start, unless it was skipped; the log does not have it."""
        means = step_means(step.values, self.world)
        if self.logger and not self.skipping.consecutive_skips:
            self.logger.show(self.samples_seen, means)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Begin to write a checkpoint, once the one before is complete."""
        self._finish_saving()
        if self.saved_at != self.samples_seen and self._has_learned:
            write = functools.partial(weights_origin.write_weights, self.trainable, self.config, self.samples_seen)
            self.checkpoints.save(self.engines, self.samples_seen, write)
            self.save_clock.restart()

    def _finish_saving(self) -> None:
        """Wait for the checkpoint that is being written, if there is one."""
        self.watchdog.heartbeat("saving", self.samples_seen)
        self.same_folder.check()
        self.saved_at = self.checkpoints.finish() or self.saved_at

    def _go_back(self) -> None:
        """Go back to the last checkpoint, and from there on skip the data up to here.

        Raises:
            UserError: there is none, or the run went back to it before.
        """
        self._finish_saving()
        self.watchdog.heartbeat("going back", self.samples_seen)
        limit, checkpoint = self.config.skip_limit, self.checkpoints.newest()
        failure = f"{self.folder}: {limit} steps in a row were skipped up to {self.samples_seen:,} samples"
        if checkpoint is None:
            raise UserError(f"{failure}, before the first checkpoint; check the data, learning rate and precision")
        samples_seen = read_manifest(checkpoint).samples_seen
        if self.skipped_data.went_back_to(samples_seen):
            raise UserError(
                f"{failure}, and again after going back to {checkpoint.name} and skipping data; to go back further, "
                f"move {checkpoint.name} to another folder"
            )
        self.skipped_data = self.skipped_data.skipping(samples_seen, self.skipped_data.position(self.samples_seen))
        if self.logger:
            self.skipped_data.write(self.folder)
            self.logger.close()
        self.world.barrier()
        self._print(f"{failure}; going back to {checkpoint.name} and skipping the data of these steps")
        self._resume(checkpoint)

    def _micro_batches(self) -> Iterator[Batch]:
        config, world = self.config, self.world
        sizes = (config.total_samples, config.global_batch, config.micro_batch, world.rank, world.size)
        positions = MicroBatches(self.samples_seen, *sizes, self.skipped_data)
        on_gpu, timeout = world.device.type == "cuda", config.collective_timeout + GRACE
        return load(self.trainable.dataset, positions, config.workers, on_gpu, timeout, self.watchdog.worker_stacks)

    def _print(self, *lines: str) -> None:
        if self.world.is_rank0 and lines:
            print(*lines, sep="\n", file=sys.stderr, flush=True)
