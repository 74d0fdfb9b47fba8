"""What a training prints when it starts and when it ends: :func:`opening` and :func:`closing`."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmldm_scale.common.checkpoint_folders import checkpoint_folder, find_checkpoints
from mmldm_scale.common.durations import duration
from mmldm_scale.config import ShardTraining, TrainingConfig
from mmldm_scale.config.compose import read_yaml
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.monitoring.throughput import TRAINING, peak_flops
from mmldm_scale.training.run_folder import CONFIG
from mmldm_scale.training.trainable import PretrainedPart, Trainable

SLOW = 86_400.0  # seconds that a training on a CPU takes at least before it is warned of
FASTER = 1.5  # how many times as fast a CPU must be in float32 for that to be said


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters, counted before an engine divides them.

    Attributes:
        all: of the module.
        trained: those of them that learn.
        discriminator: of the discriminator; 0: there is none.
    """

    all: int
    trained: int
    discriminator: int

    @classmethod
    def of(cls, trainable: Trainable) -> "Sizes":
        """Return the numbers of ``trainable``."""
        parameters = [*trainable.module.parameters()]
        discriminator = trainable.discriminator.module.parameters() if trainable.discriminator else ()
        return cls(
            sum(parameter.numel() for parameter in parameters),
            sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            sum(parameter.numel() for parameter in discriminator),
        )


def opening(
    trainable: Trainable, sizes: Sizes, config: ShardTraining, world: World, samples_seen: int, source: str = ""
) -> list[str]:
    """Return the lines about a training that begins, or resumes, at ``samples_seen``.

    Args:
        source: where the configuration comes from, such as "preset L".
    """
    training, left = config.training, config.training.total_samples - samples_seen
    steps = left // training.global_batch
    return [
        f"training {trainable.name}{f' ({source})' if source else ''}: {_sizes(sizes)}",
        f"data: {_data(trainable.sets, config.weights, left)}",
        f"on {_machine(training, world)}",
        *(f"weights: {line}" for line in _weights(trainable.pretrained, config, samples_seen)),
        f"writes to {config.run}: {_intervals(training, trainable.validation is not None)}",
        f"ends at {training.total_samples:,} samples: {left:,} samples, {steps:,} steps from here",
        *_slowness(trainable.flops_per_sample, training, world, left),
    ]


@dataclass(frozen=True)
class Start:
    """When this process began to train, on the monotonic clock, and at how many samples."""

    samples_seen: int
    time: float


def closing(
    run: Path, start: Start, samples_seen: int, total_samples: int, loss: float | None, reason: str
) -> Iterator[str]:
    """Yield the lines about a training that ends at ``samples_seen``: finished, stopped, or with nothing to do.

    Args:
        loss: mean over the last step; None: it took none.
        reason: the signal that stopped it; empty: none.
    """
    newest, trained = max(find_checkpoints(run), default=None), samples_seen - start.samples_seen
    if reason:
        saved = "saved" if newest == samples_seen else "not saved"
        yield f"stopping at {samples_seen:,} samples after {reason}; {saved}"
    state = "stopped" if reason else "finished" if trained else "finished before, nothing to do"
    parts = [f"{state}: {samples_seen:,} of {total_samples:,} samples"]
    if trained:
        parts.append(f"{trained:,} of them in {duration(time.monotonic() - start.time)}")
    parts += [f"loss of the last step {loss:.4f}"] if loss is not None else []
    parts.append("nothing is saved" if newest is None else f"weights in {checkpoint_folder(run, newest) / 'weights'}")
    parts += ["the same command resumes it"] if reason else []
    parts += ["training.total_samples=N trains for longer"] if not reason and not trained else []
    yield "; ".join(parts)


def _sizes(sizes: Sizes) -> str:
    trained = "all trained" if sizes.trained == sizes.all else f"{_number(sizes.trained)} of them trained"
    discriminator = f"; a discriminator of {_number(sizes.discriminator)}" if sizes.discriminator else ""
    return f"{_number(sizes.all)} parameters, {trained}{discriminator}"


def _number(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,}"


def _data(sets: dict[str, int], weights: Sequence[float], left: int) -> str:
    """Return how large the ``sets`` are, and how often ``left`` samples go through them."""
    if not sets:
        return "of a size that the trainable does not tell"
    total = sum(sets.values())
    if len(sets) == 1:
        text = f"{total:,} samples (an epoch) in {next(iter(sets))}"
    else:
        shown = ", ".join(f"{location} {count:,}" for location, count in sets.items())
        drawn = f", drawn by weights {', '.join(f'{weight:g}' for weight in weights)}" if weights else ""
        text = f"{total:,} samples (an epoch) in {len(sets)} sets: {shown}{drawn}"
    return f"{text}; {left / total:,.1f} epochs until the end"


def _machine(training: TrainingConfig, world: World) -> str:
    processes = f"{world.size} process{'es' * (world.size > 1)}"
    if world.device.type == "cuda":
        device = f"{torch.cuda.get_device_name(world.device)}"
    else:
        device = f"CPU, {torch.get_num_threads()} of {os.cpu_count()} cores each"
    accumulation = training.global_batch // (training.micro_batch * world.size)
    return (
        f"{processes} ({device}), {training.precision}, ZeRO-{training.zero_stage}; micro-batch {training.micro_batch} "
        f"× accumulation {accumulation} × {processes} = global batch {training.global_batch}"
    )


def _weights(parts: Sequence[PretrainedPart], config: ShardTraining, samples_seen: int) -> Iterator[str]:
    """Yield where the weights come from: the checkpoint, ``init``, the pretrained parts, or nowhere.

    A part that is trained is in the checkpoint of a run that resumes. If the run was started with another one, or with
    none, the present setting says nothing about it.
    """
    stored = read_yaml(Path(config.run) / CONFIG) if samples_seen else {}
    if samples_seen:
        yield f"of this run at {samples_seen:,} samples"
    elif config.init:
        yield f"of {config.init}; what that lacks begins at random"
    else:
        yield "begin at random, but for the parts below" if any(part.source for part in parts) else "begin at random"
    for part in parts:
        if samples_seen and not part.is_frozen and (stored.get(part.key) or "") != part.source:
            continue
        when = " at the run's start" if samples_seen and not part.is_frozen else ""
        if part.source:
            yield f"{part.name} {part.key}={part.source}{when}{', stays fixed' if part.is_frozen else ''}"
        elif not config.init:
            yield f"{part.name} RANDOM{when}: {part.advice}"


def _intervals(training: TrainingConfig, has_validation: bool) -> str:
    """Return what is written how often."""

    def every(samples: int, minutes: float) -> str:
        return f"every {samples:,} samples{f' and {minutes:g} min' if minutes else ''}"

    saving = every(training.checkpoint_every, training.checkpoint_minutes)
    validation = f"validation every {training.validate_every or training.checkpoint_every:,} samples"
    previews = every(training.preview_every, training.preview_minutes)
    return (
        f"log every {training.log_every:,} samples, checkpoints {saving} ({training.keep_checkpoints} kept), previews "
        f"{previews}, {validation if has_validation else 'no validation'}"
    )


def _slowness(flops_per_sample: float, training: TrainingConfig, world: World, left: int) -> Iterator[str]:
    """Yield a warning if this training takes long, as a CPU multiplies matrices at best."""
    if world.device.type != "cpu":
        return
    flops, dtype = TRAINING * flops_per_sample, DTYPES[training.precision]
    rate = peak_flops(world.device, dtype) * world.size
    if flops * left / rate < SLOW:
        return
    step, end = (duration(flops * samples / rate) for samples in (training.global_batch, left))
    faster = peak_flops(world.device, torch.float32) * world.size / rate
    hint = f"; with training.precision=fp32 about {faster:.0f} times as fast" if faster >= FASTER else ""
    yield (
        f"warning: this trains on the CPU, in {training.precision}: a step takes at least {step}, all of it {end}"
        f"{hint}; --preset demo is of a size for a CPU"
    )
