"""Configuration of ``mmldm train autoencoder``."""

from dataclasses import dataclass, field
from typing import Literal

from mmldm_scale.common.addresses import path_key
from mmldm_scale.config import (
    AdversarialConfig,
    AutoencoderConfig,
    DecodingConfig,
    DiscriminatorConfig,
    LossWeights,
    ShardTraining,
)
from mmldm_scale.config.check import require


@dataclass
class AutoencoderTraining(ShardTraining):
    """``mmldm train autoencoder``: encoders, projectors and signal decoder, on clip shards; λ: weights in Eq. 3."""

    trainable: str = "autoencoder"
    run: str = path_key("runs/autoencoder")
    kl_vae: str = path_key("???")  # the KL-VAE: Stable Diffusion's, as a folder or a file, or a kl_vae run
    # Stable Diffusion's U-Net, as a folder or a file, to start the decoder from; null: random
    unet: str | None = path_key(None)
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)  # encoders, projectors and decoder
    loss_weights: LossWeights = field(default_factory=LossWeights)  # weights of the audio image and the frames in L_MSE
    kl_weight: float = 1e-9  # λ_kl; the paper: 1e-9 for Landscape, 1e-8 for AIST++
    classification_weight: float = 0.1  # λ_cl; 0, or clips without labels: no classification head
    contrastive_weight: float = 0.1  # λ_co; 0: no contrastive head
    # [clips] number of clips compared with one another, of those computed at once by all processes; 0: global_batch
    contrastive_batch: int = 0
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)  # the discriminator's training, λ_gan
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)  # the discriminator's network
    # the discriminator's real pictures: the clip's own or, ours, the clip's reconstructed by the KL-VAE
    real_pictures: Literal["original", "kl_vae"] = "original"
    estimate_weight: float = 1.0  # weight of the squared error of the estimates, with model.decoder.estimate
    # [0..1] share of pictures decoded without features, pooled latent and tokens, except the class's; guidance needs it
    condition_dropout: float = 0.1
    frames_per_clip: int = 2  # [frames] number of frames of each clip that are decoded in a step
    flip: float = 0.5  # [0..1] share of clips that are mirrored
    validation: list[str] = field(default_factory=list)  # validation sets: folders or URLs of held-out shard sets
    shared_recordings: bool = False  # whether validation sets may have recordings, at other times, that are trained on
    preview: DecodingConfig = field(default_factory=lambda: DecodingConfig(steps=20))  # decoding in previews

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("kl_weight", "classification_weight", "contrastive_weight", "contrastive_batch", "estimate_weight"):
            require(getattr(self, key) >= 0, key, f"{getattr(self, key):g}: must be at least 0")
        for key in ("condition_dropout", "flip"):
            require(0 <= getattr(self, key) <= 1, key, f"{getattr(self, key):g}: must be in 0..1")
        require(self.frames_per_clip >= 1, "frames_per_clip", f"{self.frames_per_clip}: must be at least 1")
        self.loss_weights.check(self.model.modalities)
        if len(self.model.modalities) == 1:
            self._check_one_modality()

    def _check_one_modality(self) -> None:
        """Raise UserError if the loss has terms that need the modality that the model does not have."""
        name = self.model.modalities[0]
        weight = self.contrastive_weight
        problem = f"{weight:g}: must be 0 with model.modalities=[{name}]: the term compares sound with pictures"
        require(weight == 0, "contrastive_weight", problem)
        weight = self.adversarial.weight
        problem = f"{weight:g}: must be 0 with model.modalities=[audio]: the discriminator judges frames"
        require(weight == 0 or name != "audio", "adversarial.weight", problem)
