"""What turns trained weights into clips is told."""

from dataclasses import dataclass, field
from typing import Literal

from mmldm_scale.config.check import require
from mmldm_scale.config.models import Backend, DecodingConfig
from mmldm_scale.config.training import Precision

GenerationTask = Literal["svg", "a2v", "v2a"]  # joint; video to given audio; audio to given video


@dataclass
class Sampling:
    """``mmldm sample``: the sampler's settings."""

    seed: int = 0
    steps: int = 50  # steps of the DiT
    audio_guidance: float = 2.5  # of a generated audio latent, conditioned on video (Landscape, AIST++; AudioSet 1.5)
    video_guidance: float = 2.5  # of a generated video latent, conditioned on audio (Landscape, AIST++; AudioSet 3.0)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    batch_size: int = 8
    vocoder: str | None = None  # folder of a HiFi-GAN, the original's or transformers'; none: Griffin-Lim
    attention: Backend = "auto"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size"):
            require(getattr(self, key) >= 1, key, "must be at least 1")


@dataclass
class Reconstructing:
    """``mmldm reconstruct``: clips through the autoencoder and back, and how close they come."""

    seed: int = 0
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    batch_size: int = 8
    vocoder: str | None = None  # as above
    lpips: str | None = None  # weights of LPIPS's backbone (AlexNet or VGG); none: no LPIPS
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size", "must be at least 1")
