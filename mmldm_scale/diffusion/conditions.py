"""What a sample is conditioned on, as the DiT takes it: a clean latent, a context, the previous clip (section 3.3).

In training, a sample's conditions are a function of (seed, position), and :func:`conditions` makes the DiT's arguments
from a batch; in sampling they come from the user. :func:`null` replaces each of them where there is none.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mmldm_scale.common import rng
from mmldm_scale.common.modalities import MODALITIES, Modality
from mmldm_scale.config import DiffusionConfig

TrainingTask = Literal["svg", "a2v", "v2a"]
CONTEXT = ("label", "context", "context_length")  # the DiT's arguments that are a class or a text


def task_at(config: DiffusionConfig, chance: float) -> TrainingTask:
    """Return the task of a sample, by ``chance``, which is drawn uniformly from [0, 1)."""
    tasks: tuple[tuple[TrainingTask, float], ...] = (
        ("a2v", config.audio_conditioned),
        ("v2a", config.video_conditioned),
    )
    for task, share in tasks:
        if chance < share:
            return task
        chance -= share
    return "svg"


def is_continued(config: DiffusionConfig, seed: int, position: int) -> bool:
    """Return whether the sample at ``position``, of whatever task, continues the previous clip, if there is one."""
    return bool(config.continued) and rng.generator(seed, "dit/continued", position).random() < config.continued


def previous_seen(config: DiffusionConfig, seed: int, position: int) -> tuple[Modality, ...]:
    """Return the modalities of the previous clip that the sample at ``position`` sees, if it continues a clip."""
    chance = rng.generator(seed, "dit/previous/seen", position).random()
    if chance < config.without_previous_video:
        return ("audio",)
    return ("video",) if chance < config.without_previous_video + config.without_previous_audio else MODALITIES


def context_dropped(dropout: float, seed: int, position: int) -> bool:
    """Return whether the sample at ``position`` gets the null context; a share ``dropout`` of all samples does."""
    return rng.generator(seed, "dit/context", position).random() < dropout


def conditions(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the keyword arguments of ``DiT.forward`` that the samples of ``batch`` are conditioned on.

    Args:
        batch: as :func:`mmldm_scale.diffusion.loss.losses` takes it: clean latents "audio" and "video",
            (B, C, H, W), and "audio_given" and "video_given", (B,) boolean, or those of one modality alone. If the
            model continues clips, "previous_audio", "previous_video", "previous_audio_given" and
            "previous_video_given" likewise. If it has a context, "label", or "context" and "context_length", which the
            DiT takes as they are.

    Returns:
        "audio_condition" and "video_condition", and "previous_audio" and "previous_video" if ``batch`` has them: the
        clean latents, zeros (null) for samples without; the context as it is, if ``batch`` has one.
    """
    arguments = {}
    for name in MODALITIES:
        if name in batch:
            arguments[f"{name}_condition"] = batch[name] * _as_mask(batch[f"{name}_given"])
    for name in MODALITIES:
        if f"previous_{name}" in batch:
            arguments[f"previous_{name}"] = batch[f"previous_{name}"] * _as_mask(batch[f"previous_{name}_given"])
    return arguments | {name: batch[name] for name in CONTEXT if name in batch}


def shares(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return which samples of ``batch`` have each condition that any can have, as 0 or 1, (B,), by the tag of the log.

    ``batch`` is as :func:`conditions` takes it: latents (B, C, H, W), flags (B,).

    The conditions are a previous clip, a context, and, for the contrastive loss, another window of their video.
    """
    present = {}
    if "previous_audio" in batch:
        present["data/continued"] = batch["previous_audio_given"] | batch["previous_video_given"]
    if "label" in batch:
        present["data/context"] = batch["label"] >= 0
    if "context" in batch:
        present["data/context"] = batch["context_length"] > 0
    if "displaced_given" in batch:
        present["data/displaced"] = batch["displaced_given"]
    return {name: mask.float() for name, mask in present.items()}


def null(arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the values that replace the conditions ``arguments`` (of ``DiT.forward``) in samples without them.

    Latents (B, C, H, W), texts (B, T, W) and lengths (B,) become zeros, labels (B,) become -1.
    """
    return {name: torch.full_like(value, -1 if name == "label" else 0) for name, value in arguments.items()}


def _as_mask(given: Tensor) -> Tensor:
    """Return ``given`` (B,) as (B, 1, 1, 1)."""
    return given.view(-1, 1, 1, 1)
