"""What the DiT is trained on: each sample's task, timestep and noise, and its loss (sections 3.2 and 3.3).

A sample's draw is a function of (seed, position) alone, so it is the same whichever process makes it. The network
learns three tasks at once: most samples are unconditioned; a share sees the clean audio latent (a2v) and a share the
clean video latent (v2a), never both. Both modalities are always corrupted, with one timestep, and both are predicted.
"""

from dataclasses import dataclass

import numpy as np
from diffusers import DDIMScheduler
from torch import Tensor

from mmldm_scale import counter
from mmldm_scale.config import DiffusionConfig
from mmldm_scale.diffusion.conditions import conditions
from mmldm_scale.models.dit import DiT, Shape


@dataclass(frozen=True)
class Draw:
    """The chances of one training sample."""

    time: int  # timestep in [0, steps)
    audio_given: bool  # the clean audio latent is the condition (a2v)
    video_given: bool  # the clean video latent is (v2a); never both
    audio_noise: np.ndarray  # n_a, float32, shaped like the audio latent
    video_noise: np.ndarray  # n_v, likewise


def draw(config: DiffusionConfig, audio_shape: Shape, video_shape: Shape, seed: int, position: int) -> Draw:
    """Return the draw of the training sample at global ``position``."""
    random = counter.generator(seed, "dit/objective", position)
    time = int(random.integers(config.steps))
    chance = random.random()
    audio_given = chance < config.audio_conditioned
    video_given = not audio_given and chance < config.audio_conditioned + config.video_conditioned
    audio_noise = random.standard_normal(audio_shape, dtype=np.float32)
    video_noise = random.standard_normal(video_shape, dtype=np.float32)
    return Draw(time, audio_given, video_given, audio_noise, video_noise)


def losses(dit: DiT, schedule: DDIMScheduler, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return each sample's loss (Eq. 8), in float32: "loss/audio", "loss/video" and their mean "loss", each (B,).

    Eq. 8's norms are read as mean squared errors, as in the public code.

    Args:
        batch: Clean latents "audio" (B, C, Ha, Wa) and "video" (B, C, Hv, Wv), normalised; "audio_noise" and
            "video_noise" of their shapes; "time" (B,) integer; "audio_given" and "video_given" (B,) boolean.
    """
    time = batch["time"]
    noisy = [schedule.add_noise(batch[name], batch[f"{name}_noise"], time) for name in ("audio", "video")]
    predicted = dit(*noisy, time, **conditions(batch))
    audio, video = (
        (noise.float() - batch[f"{name}_noise"].float()).square().mean(dim=(1, 2, 3))
        for name, noise in zip(("audio", "video"), predicted, strict=True)
    )
    return {"loss": (audio + video) / 2, "loss/audio": audio, "loss/video": video}
