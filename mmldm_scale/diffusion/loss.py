"""What the DiT is trained on: each sample's task, timestep and noise, and its loss (sections 3.2 and 3.3).

A sample's draw is a function of (seed, position) alone, so it is the same whichever process makes it. The network
learns several tasks at once: most samples are unconditioned; a share sees the clean audio latent (a2v), a share the
clean video latent (v2a), and a share the clip before (continuation), never two of them. Both modalities are always
corrupted, with one timestep, and both are predicted. What of them is predicted says
:mod:`~mmldm_scale.diffusion.noise_process`.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mmldm_scale.common import rng
from mmldm_scale.config import ContrastiveConfig, DiffusionConfig
from mmldm_scale.diffusion.conditions import conditions, task_at
from mmldm_scale.diffusion.contrastive import contrast, wrong_pairings
from mmldm_scale.diffusion.noise_process import Process
from mmldm_scale.models.dit import DiT, Shape


@dataclass(frozen=True)
class Draw:
    """The chances of one training sample."""

    time: int  # timestep in [0, steps)
    audio_given: bool  # the clean audio latent is the condition (a2v)
    video_given: bool  # the clean video latent is (v2a)
    continued: bool  # the clip before is; never two of the three
    audio_noise: np.ndarray  # n_a, float32, shaped like the audio latent
    video_noise: np.ndarray  # n_v, likewise


def draw(config: DiffusionConfig, audio_shape: Shape, video_shape: Shape, seed: int, position: int) -> Draw:
    """Return the draw of the training sample at global ``position``."""
    random = rng.generator(seed, "dit/objective", position)
    time = _draw_time(config, random)
    task = task_at(config, random.random())
    audio_noise = random.standard_normal(audio_shape, dtype=np.float32)
    video_noise = random.standard_normal(video_shape, dtype=np.float32)
    return Draw(time, task == "a2v", task == "v2a", task == "continuation", audio_noise, video_noise)


def _draw_time(config: DiffusionConfig, random: np.random.Generator) -> int:
    """Return a timestep in [0, steps): each as likely as another, or the logit of its share of noise standard normal.

    The latter is SD3's (arXiv 2403.03206, m = 0, s = 1): most are drawn where noise and latents are about even.
    """
    if config.time_distribution == "uniform":
        return int(random.integers(config.steps))
    share = 1 / (1 + np.exp(-random.standard_normal()))
    return min(int(share * config.steps), config.steps - 1)


def losses(
    dit: DiT, process: Process, batch: dict[str, Tensor], contrastive: ContrastiveConfig | None = None
) -> dict[str, Tensor]:
    """Return each sample's losses, (B,) float32.

    "loss/audio" and "loss/video" are the mean squared errors of what is predicted (Eq. 8, whose norms are read so, as
    in the public code), unweighted, so that they can be compared from step to step. "loss" is what is minimised: their
    mean, multiplied by the timestep's weight. If ``contrastive`` has a weight, "term/contrastive" is its term, which
    "loss" includes by that weight.

    Args:
        batch: Clean latents "audio" (B, C, Ha, Wa) and "video" (B, C, Hv, Wv), normalised; "audio_noise" and
            "video_noise" of their shapes; "time" (B,) integer; what :func:`~.conditions.conditions` takes; and for the
            contrastive term what :func:`~.contrastive.wrong_pairings` does.
    """
    audio, video = errors(dit, process, batch)
    values = {"loss": process.weight(batch["time"]) * (audio + video) / 2, "loss/audio": audio, "loss/video": video}
    if contrastive and contrastive.weight:
        wrong = errors(dit, process, wrong_pairings(batch))
        values["term/contrastive"] = contrast((audio, video), wrong, contrastive.temperature)
        values["loss"] = values["loss"] + contrastive.weight * values["term/contrastive"]
    return values


def errors(dit: DiT, process: Process, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean squared errors of the predictions for audio and video of ``batch`` (see losses), (B,) float32."""
    time, names = batch["time"], ("audio", "video")
    noisy = [process.corrupt(batch[name], batch[f"{name}_noise"], time) for name in names]
    targets = [process.target(batch[name], batch[f"{name}_noise"], time) for name in names]
    predicted = dit(*noisy, time, **conditions(batch))
    audio, video = (
        (one.float() - target.float()).square().mean(dim=(1, 2, 3))
        for one, target in zip(predicted, targets, strict=True)
    )
    return audio, video
