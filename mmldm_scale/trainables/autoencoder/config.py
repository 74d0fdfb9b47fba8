"""Configuration of ``mmldm train autoencoder``."""

from dataclasses import dataclass, field
from typing import Literal

from mmldm_scale.config import (
    AdversarialConfig,
    AutoencoderConfig,
    DecodingConfig,
    DiscriminatorConfig,
    ShardTraining,
)
from mmldm_scale.config.check import require


@dataclass
class AutoencoderTraining(ShardTraining):
    """``mmldm train autoencoder``: encoders, projectors and signal decoder, on clip shards. The weights are Eq. 3's."""

    trainable: str = "autoencoder"
    run: str = "runs/autoencoder"
    kl_vae: str = "???"  # Stable Diffusion's, as a folder or a single file, or a kl-vae run
    unet: str | None = None  # Stable Diffusion's, likewise, for the signal decoder to begin from; none: random weights
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    kl_weight: float = 1e-9  # λ_kl: 1e-9 Landscape, 1e-8 AIST++
    classification_weight: float = 0.1  # λ_cl; 0 or clips without labels: no classification head
    contrastive_weight: float = 0.1  # λ_co; 0: no contrastive head
    contrastive_batch: int = 0  # samples compared with one another, of those at once on all processes; 0: global_batch
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)  # λ_gan
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    real_pictures: Literal["original", "kl_vae"] = "original"  # to the discriminator; ours: a clip's through the KL-VAE
    estimate_weight: float = 1.0  # of the estimates' squared error, where model.decoder.estimate is on
    context_dropout: float = 0.1  # share of pictures drawn without semantics and class: what guidance needs
    frames_per_clip: int = 2  # target frames of each clip in a step
    flip: float = 0.5  # share of clips mirrored
    validation: list[str] = field(default_factory=list)  # held-out sets, on which the loss is measured
    preview: DecodingConfig = field(default_factory=lambda: DecodingConfig(steps=20))

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("kl_weight", "classification_weight", "contrastive_weight", "contrastive_batch", "estimate_weight"):
            require(getattr(self, key) >= 0, key, "must not be negative")
        for key in ("context_dropout", "flip"):
            require(0 <= getattr(self, key) <= 1, key, "must lie in 0..1")
        require(self.frames_per_clip >= 1, "frames_per_clip", "must be at least 1")
