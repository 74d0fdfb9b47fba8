"""The DiT's training objective: each sample's task, timestep and noise, and its loss (sections 3.2 and 3.3).

A sample's draw is a function of (seed, position) alone, so it is the same in whichever process it is made. The network
learns several tasks at once: most samples are unconditioned; a share sees the clean audio latent (a2v), and a share the
clean video latent (v2a), never both. Whatever its task, a share sees the previous clip; in the public code's training
on long videos, all samples do. Both modalities are always corrupted, with one timestep, and both are predicted.
:mod:`~mmldm_scale.diffusion.noise_process` defines the target.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mmldm_scale.common import rng
from mmldm_scale.config import ContrastiveConfig, DiffusionConfig, LossWeights
from mmldm_scale.config.media import Shape
from mmldm_scale.diffusion.conditions import MODALITIES, conditions, is_continued, task_at
from mmldm_scale.diffusion.contrastive import contrast, wrong_pairings
from mmldm_scale.diffusion.network import Network
from mmldm_scale.diffusion.noise_process import Process


@dataclass(frozen=True)
class Draw:
    """What is drawn at random for one training sample."""

    time: int  # timestep in [0, steps)
    audio_given: bool  # whether the clean audio latent is the condition (a2v)
    video_given: bool  # whether the clean video latent is (v2a)
    continued: bool  # whether the previous clip is, with any task; at most one of the two above is true
    audio_noise: np.ndarray  # n_a, float32, shaped like the audio latent
    video_noise: np.ndarray  # n_v, likewise


def draw(config: DiffusionConfig, audio_shape: Shape, video_shape: Shape, seed: int, position: int) -> Draw:
    """Return the draw of the training sample at global ``position``."""
    random = rng.generator(seed, "dit/objective", position)
    time = _draw_time(config, random)
    task = task_at(config, random.random())
    audio_noise = random.standard_normal(audio_shape, dtype=np.float32)
    video_noise = random.standard_normal(video_shape, dtype=np.float32)
    continued = is_continued(config, seed, position)
    return Draw(time, task == "a2v", task == "v2a", continued, audio_noise, video_noise)


def _draw_time(config: DiffusionConfig, random: np.random.Generator) -> int:
    """Return a timestep in [0, steps): uniform, or such that the logit of its share of noise is standard normal.

    The latter is SD3's (arXiv 2403.03206, m = 0, s = 1): most timesteps lie where noise and latents are about even.
    """
    if config.time_distribution == "uniform":
        return int(random.integers(config.steps))
    share = 1 / (1 + np.exp(-random.standard_normal()))
    return min(int(share * config.steps), config.steps - 1)


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
    sum, each with its modality's weight (1 without ``loss_weights``), multiplied by the timestep's weight. If
    ``contrastive`` has a weight, "term/contrastive" is its unweighted term, and "loss" includes it with that weight.

    Args:
        batch: Clean latents "audio" (B, C, Ha, Wa) and "video" (B, C, Hv, Wv), normalised; "audio_noise" and
            "video_noise" of their shapes; "time" (B,) integer; what :func:`~.conditions.conditions` takes; and for the
            contrastive term what :func:`~.contrastive.wrong_pairings` takes.
    """
    audio, video = errors(network, process, batch)
    weights = loss_weights or LossWeights()
    error = (weights.audio * audio + weights.video * video) / 2
    values = {"loss": process.weight(batch["time"]) * error, "loss/audio": audio, "loss/video": video}
    if contrastive and contrastive.weight:
        wrong = errors(network, process, wrong_pairings(batch))
        values["term/contrastive"] = contrast((audio, video), wrong, batch["displaced_given"], contrastive.temperature)
        values["loss"] = values["loss"] + contrastive.weight * values["term/contrastive"]
    return values


def errors(network: Network, process: Process, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean squared errors of the predictions for audio and video of ``batch`` (see losses), (B,) float32."""
    time = batch["time"]
    pairs = [(batch[name], batch[f"{name}_noise"]) for name in MODALITIES]
    audio, video = (process.corrupt(clean, noise, time) for clean, noise in pairs)
    predictions = network(audio, video, time, **conditions(batch))
    audio_error, video_error = (
        (predicted.float() - process.target(clean, noise, time).float()).square().mean(dim=(1, 2, 3))
        for predicted, (clean, noise) in zip(predictions, pairs, strict=True)
    )
    return audio_error, video_error
