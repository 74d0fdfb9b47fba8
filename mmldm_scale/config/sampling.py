"""Settings of `mmldm sample` and `mmldm reconstruct`."""

import math
from dataclasses import dataclass, field

from mmldm_scale.common.addresses import path_key
from mmldm_scale.config.check import require
from mmldm_scale.config.models import Backend, DecodingConfig
from mmldm_scale.config.training import Precision


@dataclass
class Sampling:
    """Settings of ``mmldm sample``."""

    seed: int = 0  # of the noise of all samples
    steps: int = 50  # sampling steps of the DiT, 1 to its diffusion.steps
    sampler: str = (
        "auto"  # of the DiT: ddim (prediction=epsilon, v), euler (flow), mean_flow (with mean_flow), dpm++, unipc (all)
    )
    audio_guidance: float = 2.5  # guidance scale of generated audio latents; ours, the paper names none
    video_guidance: float = 2.5  # guidance scale of generated video latents; likewise
    # guidance scale of the class or text, beside that of a given modality or previous clip; none: the two above
    class_guidance: float | None = None
    # low and high: guidance applies in this part of the process, 0 clean, 1 noise; elsewhere it saves its arithmetic
    guidance_interval: list[float] = field(default_factory=lambda: [0.0, 1.0])
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    batch_size: int = 8  # samples of a block, which one process makes; of a tar with --lossless
    clips_together: int | None = None  # clips of a block computed together; none: 2 on a CPU, measured on a GPU
    vocoder: str | None = path_key(None)  # folder of a HiFi-GAN (the original's or transformers'); none: Griffin-Lim
    text_encoder: str | None = path_key(None)  # for prompts: folder of the text encoder of the training's texts
    attention: Backend = "auto"  # attention backend of the DiT
    precision: Precision = "fp32"  # of DiT and autoencoder

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size"):
            require(getattr(self, key) >= 1, key, "must be at least 1")
        require(self.clips_together is None or self.clips_together >= 1, "clips_together", "must be at least 1")
        for key in ("audio_guidance", "video_guidance", "class_guidance"):
            scale = getattr(self, key)
            require(scale is None or 0 <= scale < math.inf, key, f"{scale}: must be a number of at least 0")
        interval = self.guidance_interval
        valid = len(interval) == 2 and 0 <= interval[0] < interval[1] <= 1
        require(valid, "guidance_interval", f"{[*interval]}: must be [low, high] with 0 <= low < high <= 1")


@dataclass
class Reconstructing:
    """Settings of ``mmldm reconstruct``, which measures how close the autoencoder brings clips back."""

    seed: int = 0  # of the noise that decoding begins with
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    batch_size: int = 8  # clips measured together
    vocoder: str | None = path_key(None)  # folder of a HiFi-GAN (the original's or transformers'); none: Griffin-Lim
    lpips: str | None = path_key(None)  # weights of LPIPS's backbone (AlexNet or VGG); none: no LPIPS
    precision: Precision = "fp32"  # of the autoencoder

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size", "must be at least 1")
