"""Settings of `mmldm sample` and `mmldm reconstruct`."""

from dataclasses import dataclass, field
from typing import Literal

from mmldm_scale.common.addresses import path_key
from mmldm_scale.config.check import require
from mmldm_scale.config.models import Backend, DecodingConfig
from mmldm_scale.config.training import Precision

GenerationTask = Literal["svg", "a2v", "v2a"]  # both; video to given audio; audio to given video


@dataclass
class Sampling:
    """Settings of ``mmldm sample``."""

    seed: int = 0  # of the noise of all samples
    steps: int = 50  # sampling steps of the DiT
    sampler: str = (
        "auto"  # of the DiT: ddim, dpm++, unipc (prediction=epsilon or v) or euler (flow); auto: ddim or euler
    )
    audio_guidance: float = 2.5  # guidance scale of generated audio latents; ours, the paper names none
    video_guidance: float = 2.5  # guidance scale of generated video latents; likewise
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    batch_size: int = 8  # samples of a block, which one process makes; of a tar with --lossless
    clips_together: int | None = None  # clips of a block computed together; none: 2 on a CPU, measured on a GPU
    vocoder: str | None = path_key(None)  # folder of a HiFi-GAN (the original's or transformers'); none: Griffin-Lim
    attention: Backend = "auto"  # attention backend of the DiT
    precision: Precision = "fp32"  # of DiT and autoencoder

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size"):
            require(getattr(self, key) >= 1, key, "must be at least 1")
        require(self.clips_together is None or self.clips_together >= 1, "clips_together", "must be at least 1")


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
