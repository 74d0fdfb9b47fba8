"""The DiT's training objective: each sample's task, timestep and noise, and its loss (sections 3.2 and 3.3).

A sample's draw is a function of (seed, position) alone, so it is the same in whichever process it is made. The network
learns several tasks at once: most samples are unconditioned; a share sees the clean audio latent (a2v), and a share the
clean video latent (v2a), never both. Whatever its task, a share sees the previous clip; in the public code's training
on long videos, all samples do. Both modalities are always corrupted, with one timestep, and both are predicted.
:mod:`~mmldm_scale.diffusion.noise_process` defines the target.
"""

import operator
from dataclasses import dataclass
from functools import reduce

import numpy as np
from torch import Tensor

from mmldm_scale.common import rng
from mmldm_scale.common.modalities import MODALITIES, Modality, as_pair, by_modality
from mmldm_scale.config import ContrastiveConfig, DiffusionConfig, LossWeights
from mmldm_scale.config.media import Shape
from mmldm_scale.diffusion import mean_flow
from mmldm_scale.diffusion.conditions import conditions, is_continued, task_at
from mmldm_scale.diffusion.contrastive import contrast, wrong_pairings
from mmldm_scale.diffusion.network import Network
from mmldm_scale.diffusion.noise_process import MeanFlow, Process


@dataclass(frozen=True)
class Draw:
    """What is drawn at random for one training sample."""

    time: int  # timestep in [0, steps)
    audio_given: bool  # whether the clean audio latent is the condition (a2v)
    video_given: bool  # whether the clean video latent is (v2a)
    continued: bool  # whether the previous clip is, with any task; at most one of the two above is true
    audio_noise: np.ndarray | None  # n_a, float32, shaped like the audio latent
    video_noise: np.ndarray | None  # n_v, likewise
    interval: float = 0.0  # over which the velocity is averaged: share of the way from ``time`` to the clean latents


def draw(
    config: DiffusionConfig, audio_shape: Shape | None, video_shape: Shape | None, seed: int, position: int
) -> Draw:
    """Return the draw of the training sample at global ``position``; no noise where there is no shape."""
    random = rng.generator(seed, "dit/objective", position)
    time = _draw_time(config, random)
    task = task_at(config, random.random())
    shapes = by_modality(audio_shape, video_shape)
    noise = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    continued = is_continued(config, seed, position)
    time, interval = _draw_interval(config, time, seed, position)
    return Draw(time, task == "a2v", task == "v2a", continued, *as_pair(noise), interval)


def _draw_time(config: DiffusionConfig, random: np.random.Generator) -> int:
    """Return a timestep in [0, steps): uniform, or such that the logit of its share of noise is standard normal.

    The latter is SD3's (arXiv 2403.03206, m = 0, s = 1): most timesteps lie where noise and latents are about even.
    """
    if config.time_distribution == "uniform":
        return int(random.integers(config.steps))
    share = 1 / (1 + np.exp(-random.standard_normal()))
    return min(int(share * config.steps), config.steps - 1)


def _draw_interval(config: DiffusionConfig, time: int, seed: int, position: int) -> tuple[int, float]:
    """Return the sample's timestep and interval: ``time`` and 0, or the larger of it and another and their interval."""
    if not config.mean_flow:
        return time, 0.0
    random = rng.generator(seed, "dit/mean_flow", position)
    if random.random() >= config.mean_flow:
        return time, 0.0
    return mean_flow.draw_interval(time, _draw_time(config, random))


def losses(
    network: Network,
    process: Process,
    batch: dict[str, Tensor],
    contrastive: ContrastiveConfig | None = None,
    loss_weights: LossWeights | None = None,
) -> dict[str, Tensor]:
    """Return each sample's losses, (B,) float32.

    "loss/audio" and "loss/video" are the mean squared errors of the predictions (how the public code reads the norms of
    Eq. 8), unweighted, so that they can be compared from step to step. "loss" is what training minimises: half their
    sum, each with its modality's weight of ``loss_weights`` (None: no weights), multiplied by the timestep's weight; of
    average velocities it is multiplied by :func:`~.mean_flow.adaptive_weight`, too, and so is always near 1. If
    ``contrastive`` has a weight, "term/contrastive" is its unweighted term, and "loss" includes it with that weight.
    For a network of one modality alone, "loss" is that one's error, likewise with its weight and the timestep's.

    Args:
        batch: Clean latents "audio" (B, C, Ha, Wa) and "video" (B, C, Hv, Wv), normalised; "audio_noise" and
            "video_noise" of their shapes; "time" (B,) integer; what :func:`~.conditions.conditions` takes; and for the
            contrastive term what :func:`~.contrastive.wrong_pairings` takes.
    """
    true, weights = errors(network, process, batch), loss_weights or LossWeights()
    weighted = [getattr(weights, name) * error for name, error in true.items()]
    error = reduce(operator.add, weighted) / len(weighted)
    values = {"loss": process.weight(batch["time"]) * error}
    if isinstance(process, MeanFlow):
        values["loss"] = values["loss"] * mean_flow.adaptive_weight(error)
    values |= {f"loss/{name}": error for name, error in true.items()}
    if contrastive and contrastive.weight:
        wrong = errors(network, process, wrong_pairings(batch))
        pairs = [(of_pairing["audio"], of_pairing["video"]) for of_pairing in (true, wrong)]
        displaced = batch["displaced_given"]
        values["term/contrastive"] = contrast(pairs[0], pairs[1], displaced, contrastive.temperature)
        values["loss"] = values["loss"] + contrastive.weight * values["term/contrastive"]
    return values


def errors(network: Network, process: Process, batch: dict[str, Tensor]) -> dict[Modality, Tensor]:
    """Return the mean squared errors of the predictions by modality, (B,) float32 each.

    ``batch`` is as :func:`losses` takes it: latents and noise (B, C, H, W), timesteps and flags (B,).
    """
    time = batch["time"]
    pairs = {name: (batch[name], batch[f"{name}_noise"]) for name in MODALITIES if name in batch}
    noisy = {name: process.corrupt(clean, noise, time) for name, (clean, noise) in pairs.items()}
    arguments = conditions(batch)
    predictions = by_modality(*network(*as_pair(noisy), time, **arguments))
    targets = {name: process.target(clean, noise, time).float() for name, (clean, noise) in pairs.items()}
    if isinstance(process, MeanFlow):
        targets = mean_flow.targets(network, predictions, targets, noisy, time, process.length, arguments)
    return {name: (predictions[name].float() - target).square().mean(dim=(1, 2, 3)) for name, target in targets.items()}
