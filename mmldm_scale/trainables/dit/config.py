"""Configuration of ``mmldm train dit``."""

from dataclasses import dataclass, field
from typing import Literal

from mmldm_scale.common.addresses import path_key
from mmldm_scale.config import (
    ContextConfig,
    ContrastiveConfig,
    DiffusionConfig,
    DiTConfig,
    LossWeights,
    ShardTraining,
)
from mmldm_scale.config.check import require


@dataclass
class PreviewConfig:
    """Previews of a DiT in training: clips sampled with the averaged weights, always from the same noise."""

    samples: int = 3  # [clips] number of clips in a preview, of svg, a2v and v2a in turn; 0: no preview
    steps: int = 25  # [DDIM steps] sampling steps of the DiT
    decoding_steps: int = 10  # [DDIM steps] sampling steps of the signal decoder
    autoencoder: str = path_key("")  # folder of the autoencoder; empty: where it was when the latents were made

    def __post_init__(self) -> None:
        for key, least in (("samples", 0), ("steps", 1), ("decoding_steps", 1)):
            value = getattr(self, key)
            require(value >= least, f"preview.{key}", f"{value}: must be at least {least}")


@dataclass
class DiTTraining(ShardTraining):
    """``mmldm train dit``: the diffusion transformer, on latent shards."""

    trainable: str = "dit"
    run: str = path_key("runs/dit")
    model: DiTConfig = field(default_factory=DiTConfig)  # the transformer
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)  # noise, objective and tasks
    context: ContextConfig = field(default_factory=ContextConfig)  # the context tokens
    loss_weights: LossWeights = field(default_factory=LossWeights)  # weights of the two modalities' errors
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)  # the contrastive loss
    flip: float = 0.5  # [0..1] share of samples that use the latents of the mirrored video
    # latents of a sample: the posterior's mode, which is its mean (public code), or a draw from the posterior
    posterior: Literal["mode", "draw"] = "mode"
    validation: list[str] = field(default_factory=list)  # validation sets: folders or URLs of held-out shard sets
    shared_recordings: bool = False  # whether validation sets may have recordings, at other times, that are trained on
    preview: PreviewConfig = field(default_factory=PreviewConfig)  # previews during training

    def __post_init__(self) -> None:
        super().__post_init__()
        valid = self.model.continuation or not self.diffusion.continued
        require(valid, "diffusion.continued", f"{self.diffusion.continued:g}: needs model.continuation=true")
        weight, share = self.contrastive.weight, self.diffusion.continued
        problem = (
            f"{weight:g}: must be 0 with diffusion.continued={share:g}: the previous clip tells the wrong pairings"
        )
        require(not (weight and share), "contrastive.weight", f"{problem} by itself")
        valid = self.model.context_tokens > 0 or self.context.kind == "none"
        require(valid, "context.kind", f"{self.context.kind}: needs model.context_tokens of at least 1")
        self.loss_weights.check(self.model.modalities)
        self._check_mean_flow()
        if len(self.model.modalities) == 1:
            self._check_one_modality()

    def _check_mean_flow(self) -> None:
        """Raise UserError if average velocities are to be learned and something does not go with them."""
        share, embedded = self.diffusion.mean_flow, self.model.average_velocity
        problem = f"{str(embedded).lower()}: must be {str(share > 0).lower()} with diffusion.mean_flow={share:g}"
        require(embedded == (share > 0), "model.average_velocity", problem)
        weight = self.contrastive.weight
        problem = f"{weight:g}: must be 0 with diffusion.mean_flow={share:g}: it compares errors of velocities"
        require(not (share and weight), "contrastive.weight", problem)

    def _check_one_modality(self) -> None:
        """Raise UserError if a task or a term of the loss needs the modality that the model does not have."""
        needs_both = {
            "diffusion.audio_conditioned": self.diffusion.audio_conditioned,
            "diffusion.video_conditioned": self.diffusion.video_conditioned,
            "contrastive.weight": self.contrastive.weight,
        }
        for key, value in needs_both.items():
            problem = f"{value:g}: must be 0 with model.modalities=[{self.model.modalities[0]}]: it needs both"
            require(value == 0, key, problem)
