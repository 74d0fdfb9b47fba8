"""Configuration of ``mmldm train kl_vae``."""

from dataclasses import dataclass, field
from typing import Literal

from mmldm_scale.common.addresses import path_key
from mmldm_scale.config import AdversarialConfig, KLVAEConfig, PatchDiscriminatorConfig, ShardTraining
from mmldm_scale.config.check import require


@dataclass
class KLVAETraining(ShardTraining):
    """``mmldm train kl_vae``: a KL-VAE, on the frames and audio images of clip shards.

    With ``kl_vae`` it fine-tunes the decoder of that one (section 4.6), else it trains one from scratch.
    """

    trainable: str = "kl_vae"
    run: str = path_key("runs/kl_vae")
    # KL-VAE to fine-tune: a folder, a file or a kl_vae run; its encoder stays fixed; empty: none
    kl_vae: str = path_key("")
    model: KLVAEConfig = field(default_factory=KLVAEConfig)  # the network, if it is trained from scratch
    audio_share: float = 0.25  # [0..1] share of samples that are audio images; the others are video frames
    reconstruction: Literal["l1", "l2"] = "l2"  # error between a picture and its reconstruction
    kl_weight: float = 1e-6  # weight of the KL divergence, if it is trained from scratch
    # file with the weights of LPIPS's backbone, AlexNet or VGG16; null: no LPIPS term
    lpips: str | None = path_key(None)
    lpips_weight: float = 1.0  # weight of the LPIPS term
    discriminator: PatchDiscriminatorConfig = field(default_factory=PatchDiscriminatorConfig)  # its network
    adversarial: AdversarialConfig = field(default_factory=lambda: AdversarialConfig(weight=0.0))  # its training

    def __post_init__(self) -> None:
        super().__post_init__()
        problem = f"{self.init}: must be left out with kl_vae={self.kl_vae}, which the run begins with"
        require(not (self.init and self.kl_vae), "init", problem)
        require(0 <= self.audio_share <= 1, "audio_share", f"{self.audio_share:g}: must be in 0..1")
        for key in ("kl_weight", "lpips_weight"):
            require(getattr(self, key) >= 0, key, f"{getattr(self, key):g}: must be at least 0")
