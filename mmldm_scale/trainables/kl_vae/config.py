"""Configuration of ``mmldm train kl_vae``."""

from dataclasses import dataclass, field
from typing import Literal

from mmldm_scale.config import AdversarialConfig, KLVAEConfig, PatchDiscriminatorConfig, ShardTraining
from mmldm_scale.config.check import require


@dataclass
class KLVAETraining(ShardTraining):
    """``mmldm train kl-vae``, on the frames and audio images of clip shards.

    With ``kl_vae`` it fine-tunes that one's decoder (section 4.6), else it trains a small one from scratch.
    """

    trainable: str = "kl_vae"
    run: str = "runs/kl_vae"
    kl_vae: str = ""  # the one to fine-tune: its encoder stays as it is
    model: KLVAEConfig = field(default_factory=KLVAEConfig)  # of the one from scratch
    audio_share: float = 0.25  # of the samples; the others are video frames
    reconstruction: Literal["l1", "l2"] = "l2"
    kl_weight: float = 1e-6  # from scratch
    lpips: str | None = None  # weights of LPIPS's backbone (AlexNet or VGG); none: no such term
    lpips_weight: float = 1.0
    discriminator: PatchDiscriminatorConfig = field(default_factory=PatchDiscriminatorConfig)
    adversarial: AdversarialConfig = field(default_factory=lambda: AdversarialConfig(weight=0.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.audio_share <= 1, "audio_share", "must lie in 0..1")
        require(self.kl_weight >= 0, "kl_weight", "must not be negative")
        require(self.lpips_weight >= 0, "lpips_weight", "must not be negative")
