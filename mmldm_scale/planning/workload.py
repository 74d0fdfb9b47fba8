"""A training as the planner sees it: one micro-step on the device "meta", and its arithmetic.

workload = make_workload("dit", config, label="DiT-L")
outline = workload.step("full", training)
count_flops(outline)  # {torch.bfloat16: …, torch.float32: …} floating-point operations
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from omegaconf import MISSING

from mmldm_scale.config import TrainingConfig, load
from mmldm_scale.models.flop_counter import FlopCounter
from mmldm_scale.models.meta_operators import fused_attention
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.models.recompute import Recomputation
from mmldm_scale.planning.hardware import Cluster
from mmldm_scale.planning.memory import FLOAT32_BYTES, run_step, trained_networks, working_outline
from mmldm_scale.shards.manifest import Manifest
from mmldm_scale.trainables.registry import registered
from mmldm_scale.training.monitoring.throughput import TRAINING
from mmldm_scale.training.trainable import StepOutline

PLACEHOLDER = "DIR"  # value of required paths that are not set
CHECKPOINTING = "activation_checkpointing"  # key of ``model`` in the configuration of a trainable that has it
ON_OR_OFF: dict[Recomputation, bool] = {"none": False, "full": True}  # values where that key is a bool


@dataclass(frozen=True)
class Workload:
    """A training, as far as it takes memory, time and traffic.

    Attributes:
        label: name of the model in the report.
        config: configuration of the trainable.
        outline: ``outline(config)`` returns a micro-step on the device "meta", as in the registry's record.
        recomputations: values of ``model.activation_checkpointing`` by what they recompute, the least first; a model
            without this key has "none" alone, with the value None.
        flops_per_sample: floating-point operations of a sample in training, without recomputation, as the training
            loop counts them for its MFU.
        samples_together: as in :class:`StepOutline`.
        transformer_width: as in :class:`StepOutline`.
    """

    label: str
    config: Any
    outline: Callable[[Any], StepOutline]
    recomputations: Mapping[Recomputation, Any]
    flops_per_sample: float
    samples_together: int = 1
    transformer_width: int | None = None

    @property
    def training(self) -> TrainingConfig:
        """The settings that all trainables share."""
        return self.config.training

    def step(self, recomputation: Recomputation, training: TrainingConfig) -> StepOutline:
        """Return a micro-step with other settings than the configuration's, its networks in working precision."""
        config, value = replace(self.config, training=training), self.recomputations[recomputation]
        if value is not None:
            config = replace(config, model=replace(config.model, **{CHECKPOINTING: value}))
        return working_outline(self.outline, config)

    def override(self, recomputation: Recomputation) -> str:
        """Return the override that sets ``recomputation``; empty if the configuration has this value already."""
        value = self.recomputations[recomputation]
        if value is None or value == getattr(self.config.model, CHECKPOINTING):
            return ""
        return f"model.{CHECKPOINTING}={str(value).lower()}"

    def efficiency(self, cluster: Cluster) -> float:
        """Return the share of the dense peak at which the GPUs of ``cluster`` are assumed to compute this model."""
        if self.transformer_width is None:
            return cluster.convolutions
        widths, shares = list(cluster.transformers), list(cluster.transformers.values())
        return float(np.interp(self.transformer_width, widths, shares))


def load_config(trainable: str, files: Sequence[str | Path], overrides: Sequence[str] = ()) -> Any:
    """Return the configuration of ``trainable``, with PLACEHOLDER for each required path that is not set.

    Raises:
        UserError: as :func:`mmldm_scale.config.load`.
    """
    schema = registered(trainable).schema()
    placeholders = [f"{field.name}={PLACEHOLDER}" for field in dataclasses.fields(schema) if field.default == MISSING]
    return load(schema, files, [*placeholders, *overrides])


def make_workload(trainable: str, config: Any, label: str, manifest: Manifest | None = None) -> Workload:
    """Return the training of ``trainable`` that ``config`` describes.

    Args:
        trainable: name of its record in the registry.
        config: its configuration.
        label: name of the model in the report.
        manifest: of the set whose samples it is trained on; None: samples of the paper's sizes.
    """
    make_outline = functools.partial(registered(trainable).outline, manifest=manifest)
    outline = make_outline(config)
    return Workload(
        label=label,
        config=config,
        outline=make_outline,
        recomputations=_recomputations(config),
        flops_per_sample=TRAINING * outline.count_flops(),
        samples_together=outline.samples_together,
        transformer_width=outline.transformer_width,
    )


def _recomputations(config: Any) -> dict[Recomputation, Any]:
    """Return the values of ``model.activation_checkpointing`` by what they recompute; None if there is no such key."""
    kind = get_type_hints(type(config.model)).get(CHECKPOINTING) if hasattr(config, "model") else None
    if kind is None:
        return {"none": None}
    if get_origin(kind) is Literal:
        return {mode: mode for mode in get_args(kind)}
    return dict(ON_OR_OFF)


def count_flops(outline: StepOutline) -> dict[torch.dtype, int]:
    """Return the floating-point operations of a micro-step by the type of number, recomputation included.

    It is a step that is not logged: a logged one takes another backward pass for each term of the loss.
    """
    with fused_attention(), FlopCounter() as counter:  # without the former, attention is counted in float32
        run_step(outline, replace(outline.info, logged=False))
    return dict(counter.flops)


def checkpoint_bytes(outline: StepOutline, training: TrainingConfig) -> int:
    """Return about how many bytes a checkpoint has: DeepSpeed's files of each network, and the exported weights.

    DeepSpeed's files hold the weights in working precision and, in float32, master weights, Adam's two moments and the
    averages. The exported weights are the first average and the frozen networks, in float32.
    """
    number_bytes, total = DTYPES[training.precision].itemsize, 0
    for network, settings in trained_networks(outline, training):
        count = sum(parameter.numel() for parameter in network.parameters())
        masters = int(settings.zero_stage > 0 or number_bytes < FLOAT32_BYTES)
        averages = len(training.ema_lengths) if network is outline.module else 0
        total += count * (number_bytes + FLOAT32_BYTES * (masters + 2 + averages + bool(averages)))
    frozen = outline.frozen.parameters() if outline.frozen else ()
    return total + FLOAT32_BYTES * sum(parameter.numel() for parameter in frozen)
