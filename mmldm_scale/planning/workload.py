"""What the planner knows of a training: one micro-step of it on shapes, and how much arithmetic that is.

workload = of_dit("DiT-L", config)
step = workload.step(workload.recomputing("full", training))
arithmetic(step)  # {torch.bfloat16: …, torch.float32: …} floating-point operations
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from mmldm_scale.config import KLVAEConfig, MediaConfig, TrainingConfig
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.flops import AUDIO_SHAPE, VIDEO_SHAPE
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.models.recompute import Recomputation
from mmldm_scale.planning.allocations import SHORTCUTS, fused_attention
from mmldm_scale.planning.hardware import Cluster
from mmldm_scale.planning.memory import MASTER, MicroStep, autoencoder_step, dit_step, engines, take
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.autoencoder.trainable import forward_flops
from mmldm_scale.trainables.dit import trainable as dit_trainable
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.training.monitoring.throughput import TRAINING
from mmldm_scale.training.trainable import StepInfo

CLASSES = 9  # Landscape's; how many there are hardly counts


@dataclass(frozen=True)
class Workload:
    """A training, as far as it takes memory, time and traffic.

    Attributes:
        name: for people.
        training: what all trainings share.
        step: makes a micro-step on shapes for (activation checkpointing, how it trains).
        modes: the settings of ``model.activation_checkpointing`` by how much they recompute, the least first.
        given: the setting that the configuration has.
        useful: FLOPs of a sample in training, recomputation not counted, as the trainer counts them for its MFU.
        efficiency: the share of the dense peak at which the GPUs of a cluster compute it, assumed.
        compared: clips that the contrastive loss compares, which have to be there at once on all processes; 1: none.
    """

    name: str
    training: TrainingConfig
    step: Callable[[Any, TrainingConfig], MicroStep]
    modes: Mapping[Recomputation, Any]
    given: Any
    useful: float
    efficiency: Callable[[Cluster], float]
    compared: int = 1

    def setting(self, mode: Recomputation) -> str:
        """Return the override that sets ``mode``; empty if the configuration has it already."""
        value = self.modes[mode]
        return "" if value == self.given else f" model.activation_checkpointing={str(value).lower()}"


def of_dit(name: str, config: DiTTraining) -> Workload:
    """Return the training of a DiT on the paper's latents."""

    def step(checkpointing: Recomputation, training: TrainingConfig) -> MicroStep:
        model = replace(config.model, activation_checkpointing=checkpointing)
        return dit_step(replace(config, model=model, training=training), AUDIO_SHAPE, VIDEO_SHAPE)

    def efficiency(cluster: Cluster) -> float:
        return float(np.interp(config.model.width, *zip(*cluster.transformers.items(), strict=True)))

    modes = {mode: mode for mode in ("none", "selective", "full")}
    useful = TRAINING * dit_trainable.forward_flops(config, AUDIO_SHAPE, VIDEO_SHAPE)
    return Workload(name, config.training, step, modes, config.model.activation_checkpointing, useful, efficiency)


def of_autoencoder(name: str, config: AutoencoderTraining) -> Workload:
    """Return the training of an autoencoder over Stable Diffusion's KL-VAE; its discriminator, if any, takes part."""
    media, classes = MediaConfig(), [""] * CLASSES

    def step(checkpointing: bool, training: TrainingConfig) -> MicroStep:
        model = replace(config.model, activation_checkpointing=checkpointing)
        with torch.device("meta"):
            vae = kl_vae.build(KLVAEConfig())
        return autoencoder_step(replace(config, model=model, training=training), media, vae, classes)

    compared = (config.contrastive_batch or config.training.global_batch) if config.contrastive_weight else 1
    return Workload(
        name,
        config.training,
        step,
        {"none": False, "full": True},
        config.model.activation_checkpointing,
        TRAINING * forward_flops(config, step(False, config.training).module.autoencoder),
        lambda cluster: cluster.convolutions,
        compared,
    )


def arithmetic(step: MicroStep) -> dict[torch.dtype, int]:
    """Return the floating-point operations of a micro-step by the type of number, what is computed again included.

    It is a step that is not logged: those take another pass back from each term of the autoencoder's loss.
    """
    if hasattr(step.module, "begin_step"):
        step.module.begin_step(StepInfo(samples_seen=0, logged=False, adversarial=step.discriminator is not None))
    with fused_attention(), Arithmetic() as counter:  # else it would be written out, in float32
        take(step)
    return dict(counter.flops)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(gradient: torch.Tensor, *inputs: Any, **__: Any) -> int:
    return 2 * _attention(*inputs)  # what the kernel computes again is not counted


FORMULAS = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,  # the one that the device "meta" can take
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Arithmetic(TorchDispatchMode):
    """Counts the FLOPs of matrix products, convolutions and attention in a ``with`` block, as torch does.

    torch's ``FlopCounterMode`` does not say in which type of number they are, on which it depends how long they take:
    on a V100 the KL-VAE, in float32 beside fp16, takes eight times as long.

    Attributes:
        flops: by the type of number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(
        self, operator: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``operator``, on shapes by a shortcut if there is one, and count what it does."""
        kwargs = kwargs or {}
        shortcut = SHORTCUTS.get(operator) if args and getattr(args[0], "is_meta", False) else None
        result = (shortcut or operator)(*args, **kwargs)
        formula = FORMULAS.get(operator._overloadpacket)
        if formula:
            self.flops[args[0].dtype] += formula(*args, **kwargs, out_val=result)
        return result


def checkpoint_bytes(workload: Workload) -> int:
    """Return the bytes of a checkpoint, about: DeepSpeed's files of each network, and the averaged weights.

    Those hold the weights in working precision and, in float32, master weights, Adam's two moments and the averages.
    """
    training = workload.training
    step = workload.step(workload.given, training)
    number, total = DTYPES[training.precision].itemsize, 0
    for module, settings in engines(step, training):
        count = sum(parameter.numel() for parameter in module.parameters())
        masters = int(settings.zero_stage > 0 or number < MASTER)
        averages = len(training.ema_lengths) if module is step.module else 0
        total += count * (number + MASTER * (masters + 2 + averages + bool(averages)))
    beside = step.beside.parameters() if step.beside else ()
    return total + MASTER * sum(parameter.numel() for parameter in beside)
