"""The memory that a training takes of each GPU, predicted without a GPU.

    outline = working_outline(registered("dit").outline, config)
    predict(outline, config.training, processes=8).total  # bytes

The states of training (weights, gradients, float32 master weights, moments and averages) are those that DeepSpeed holds
at each ZeRO stage, as :mod:`~mmldm_scale.training.engine.deepspeed_engine` configures it. Activations are counted by
running the trainable's own micro-step on the device "meta", backward pass and recomputation included
(:mod:`~mmldm_scale.planning.allocations`). Not counted: what CUDA, NCCL and cuDNN take for themselves, and what
PyTorch's allocator loses to fragmentation.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, replace
from typing import Any

from torch import Tensor, nn

from mmldm_scale.config import TrainingConfig
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.planning.allocations import Allocations
from mmldm_scale.training.step import DiscriminatorStep, MicroStep
from mmldm_scale.training.trainable import StepInfo, StepOutline

GIB = 2**30  # bytes
FLOAT32_BYTES = 4  # bytes of a float32 number
MAX_LIVE_PARAMETERS = 1_000_000_000  # parameters that ZeRO-3 gathers on a GPU at most, DeepSpeed's default


@dataclass(frozen=True)
class States:
    """Bytes on each GPU that hold networks and their optimizers.

    Attributes:
        parameters: in working precision, with frozen parameters and buffers.
        gradients: in working precision.
        optimizer: in float32: master weights, Adam's two moments, the averages of the weights.
        communication: DeepSpeed's buckets, and with ZeRO-3 the weights gathered from the other GPUs.
        update: float32 gradients, which exist only while the optimizer steps, when no activations are left.
    """

    parameters: int
    gradients: int
    optimizer: int
    communication: int
    update: int

    def __add__(self, other: "States") -> "States":
        return States(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Prediction:
    """Bytes on each GPU.

    Attributes:
        states: of all engines together.
        activations: the peak of all that exists only during a forward and backward pass.
    """

    states: States
    activations: int

    @property
    def total(self) -> int:
        """The peak of a whole step."""
        states = self.states
        temporary = max(states.communication + self.activations, states.update)
        return states.parameters + states.gradients + states.optimizer + temporary


def working_outline(outline: Callable[[Any], StepOutline], config: Any) -> StepOutline:
    """Return ``outline(config)`` with its trained networks in working precision, as DeepSpeed casts them.

    DeepSpeed leaves buffers as they are.
    """
    result = outline(config)
    for network, _ in trained_networks(result, config.training):
        for parameter in network.parameters():
            parameter.data = parameter.data.to(DTYPES[config.training.precision])
    return result


def trained_networks(outline: StepOutline, training: TrainingConfig) -> list[tuple[nn.Module, TrainingConfig]]:
    """Return the networks that engines train in ``outline``, each with its settings."""
    networks = [(outline.module, training)]
    if outline.discriminator is not None:  # as in training/engine/discriminator_engine.py
        networks.append((outline.discriminator, replace(training, zero_stage=min(training.zero_stage, 2))))
    return networks


def predict(outline: StepOutline, training: TrainingConfig, processes: int) -> Prediction:
    """Return the memory of each GPU in a training by ``processes``, one on each GPU.

    Args:
        outline: a micro-step whose networks are in working precision (:func:`working_outline`).
        training: its settings.
        processes: number of processes.
    """
    return Prediction(all_states(outline, training, processes), activations(outline))


def all_states(outline: StepOutline, training: TrainingConfig, processes: int) -> States:
    """Return the states of all networks of ``outline``; arguments as of :func:`predict`."""
    frozen = _bytes([*outline.frozen.parameters(), *outline.frozen.buffers()]) if outline.frozen else 0
    total = States(frozen, 0, 0, 0, 0)
    for network, settings in trained_networks(outline, training):
        total += states(network, settings, processes, averaged=network is outline.module)
    return total


def states(module: nn.Module, training: TrainingConfig, processes: int, averaged: bool = True) -> States:
    """Return what DeepSpeed holds for one network on each of ``processes``.

    Args:
        module: in working precision.
        training: its settings.
        processes: number of processes.
        averaged: whether its optimizer keeps averages of the weights (EMA).
    """
    stage, number_bytes = training.zero_stage, DTYPES[training.precision].itemsize
    counts = [parameter.numel() for parameter in module.parameters() if parameter.requires_grad]
    share = _share(counts, stage, processes)
    held = {0: sum(counts), 1: share * processes, 2: share * processes, 3: share}[stage]
    splits = processes if stage == 3 else 1
    frozen = sum(
        math.ceil(parameter.numel() / splits) * parameter.element_size()
        for parameter in module.parameters()
        if not parameter.requires_grad
    )
    masters = int(stage > 0 or number_bytes < FLOAT32_BYTES)  # else the parameters themselves are the master weights
    averages = len(training.ema_lengths) if averaged else 0
    update_bytes = FLOAT32_BYTES + (number_bytes if stage in (1, 2) and number_bytes < FLOAT32_BYTES else 0)
    return States(
        parameters=number_bytes * held + frozen + _bytes(module.buffers()),
        gradients=number_bytes * (share if stage >= 2 else sum(counts)),
        optimizer=0 if training.offload_optimizer else FLOAT32_BYTES * share * (masters + 2 + averages),
        communication=number_bytes * _communication_numbers(training, sum(counts)),
        update=masters * share * update_bytes,
    )


def _share(counts: list[int], stage: int, processes: int) -> int:
    """Return how many numbers of parameters of these ``counts`` have their states on one process."""
    if stage == 0:
        return sum(counts)
    if stage == 3:
        return sum(math.ceil(count / processes) for count in counts)
    pairs = math.ceil(sum(counts) / (2 * processes))  # DeepSpeed makes partitions of an even length
    return 2 * pairs


def _communication_numbers(training: TrainingConfig, trained: int) -> int:
    """Return how many numbers are in DeepSpeed's buckets and gathered weights, of ``trained`` parameters."""
    if training.zero_stage == 0:
        return 0
    bucket = training.reduce_bucket(trained)
    if training.zero_stage < 3:
        return bucket
    settings = training.deepspeed.get("zero_optimization", {})
    return bucket + min(settings.get("stage3_max_live_parameters", MAX_LIVE_PARAMETERS), trained)


def activations(outline: StepOutline) -> int:
    """Return the peak bytes of what exists only during a micro-step, the discriminator's own pass included."""
    networks = [network for network in (outline.module, outline.discriminator) if network is not None]
    with Allocations([parameter for network in networks for parameter in network.parameters()]) as memory:
        run_step(outline)
    return memory.peak


def run_step(outline: StepOutline, info: StepInfo | None = None) -> None:
    """Run a micro-step forward and backward, by the class that the training loop runs it with.

    Args:
        outline: the micro-step.
        info: the optimizer step that it belongs to; None: ``outline.info``.
    """
    if outline.begin_step is not None:
        outline.begin_step(info or outline.info)
    network = outline.discriminator
    discriminator = None if network is None else DiscriminatorStep(network, network, Tensor.backward)
    MicroStep(outline.module, Tensor.backward, outline.term_weights, discriminator)(outline.batch)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
