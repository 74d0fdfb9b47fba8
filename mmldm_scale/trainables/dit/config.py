"""Configuration of ``mmldm train dit``."""

from dataclasses import dataclass, field

from mmldm_scale.config import (
    ContextConfig,
    ContrastiveConfig,
    DiffusionConfig,
    DiTConfig,
    ShardTraining,
)
from mmldm_scale.config.check import require


@dataclass
class PreviewConfig:
    """What a DiT in training shows of its averaged weights: samples of svg, always of the same noise."""

    samples: int = 2  # 0: none
    steps: int = 25  # DDIM steps of the DiT
    decoding_steps: int = 20  # of the autoencoder's signal decoder
    autoencoder: str = ""  # where it lies now; none: where it lay when the latents were made

    def __post_init__(self) -> None:
        require(self.samples >= 0, "preview.samples", "must not be negative")
        require(min(self.steps, self.decoding_steps) >= 1, "preview", "steps and decoding_steps are at least 1")


@dataclass
class DiTTraining(ShardTraining):
    """``mmldm train dit``: the diffusion transformer, on latent shards."""

    trainable: str = "dit"
    run: str = "runs/dit"
    model: DiTConfig = field(default_factory=DiTConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    flip: float = 0.5  # share of samples that use the mirrored video's latent
    validation: list[str] = field(default_factory=list)  # held-out sets, on which the loss is measured
    preview: PreviewConfig = field(default_factory=PreviewConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        fit = self.model.continuation or not self.diffusion.continued
        require(fit, "diffusion.continued", f"{self.diffusion.continued:g}: needs model.continuation=true")
        fit = self.model.context_tokens > 0 or self.context.kind == "none"
        require(fit, "context.kind", f"{self.context.kind}: needs model.context_tokens of at least 1")
