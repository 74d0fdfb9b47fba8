"""The shapes of the networks, of the noise, and how pictures are drawn from it."""

from dataclasses import dataclass, field
from typing import Literal

from mmldm_scale.config.check import require

Backend = Literal["auto", "flash", "flash4", "xformers", "sdpa", "math"]


@dataclass
class KLVAEConfig:
    """A KL-VAE trained from scratch, for when no pretrained one is at hand (f = 2 ** (len(channels) - 1))."""

    channels: list[int] = field(default_factory=lambda: [128, 256, 512, 512])
    blocks: int = 2  # residual blocks a level
    latent_channels: int = 4


@dataclass
class EncoderConfig:
    """An audio or video encoder on top of the KL-VAE: each level after the first halves the picture."""

    width: int = 320
    multipliers: list[int] = field(default_factory=lambda: [1, 2])
    blocks: int = 2  # residual blocks a level
    heads: int = 8  # of the attention at the last level
    key_frames: list[int] = field(default_factory=list)  # video: the only frames seen (the public code's 0, 5, 10, 15)


@dataclass
class UNetConfig:
    """The signal decoder; the defaults are Stable Diffusion 1.5's geometry."""

    width: int = 320
    multipliers: list[int] = field(default_factory=lambda: [1, 2, 4, 4])
    blocks: int = 2  # residual blocks a level
    attention: list[bool] = field(default_factory=lambda: [True, True, True, False])  # cross-attention by level
    heads: int = 8
    estimate: bool = False  # guess the noise from the features alone; the U-Net corrects it. For training from scratch

    def __post_init__(self) -> None:
        require(
            len(self.attention) == len(self.multipliers),
            "model.decoder.attention",
            f"needs one entry a level: {len(self.multipliers)}, not {len(self.attention)}",
        )


@dataclass
class AutoencoderConfig:
    """The hierarchical multi-modal autoencoder (section 3.1 of the paper)."""

    latent_channels: int = 16
    audio_encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(multipliers=[1, 2, 4]))
    video_encoder: EncoderConfig = field(default_factory=EncoderConfig)
    shortcut: bool = False  # from the KL-VAE's latents to the encoders' means, without parameters; ours
    semantics: bool = True  # projectors, their heads, and cross-attention on the other modality's semantics and class
    semantic_width: int = 768
    contrastive_width: int = 256  # of the vectors that the contrastive head compares; 0: no head
    detach_projectors: bool = False  # the semantic losses train the projectors alone, as in the public code
    decoder: UNetConfig = field(default_factory=UNetConfig)
    shared_decoder: bool = True  # one U-Net for both modalities; false: one each (Table 5's first row)
    pooled_latent: bool = True  # the pooled latent joins the time embedding
    activation_checkpointing: bool = False  # encoders, U-Net and the KL-VAE's decoder recompute in the backward pass

    def __post_init__(self) -> None:
        require(not self.audio_encoder.key_frames, "model.audio_encoder.key_frames", "are the video encoder's")


@dataclass
class DiscriminatorConfig:
    """The discriminator of audio image and two frames (Eq. 2): each level after the first halves the pictures."""

    width: int = 32
    multipliers: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 4, 6, 6])
    blocks: int = 1  # residual blocks a level
    attention: int = 4  # how many of the last levels attend over all three pictures
    heads: int = 4

    def __post_init__(self) -> None:
        levels = len(self.multipliers)
        require(0 <= self.attention <= levels, "discriminator.attention", f"0 to {levels} of the levels fit")
        odd = [w for m in self.multipliers[levels - self.attention :] if (w := m * self.width) % self.heads]
        require(not odd, "discriminator.heads", f"{self.heads} must divide the width of each level that attends: {odd}")


@dataclass
class PatchDiscriminatorConfig:
    """The discriminator of single pictures, one verdict a patch."""

    width: int = 64
    layers: int = 3  # strided ones: a verdict sees 70 × 70 pixels with 3, 34 × 34 with 2, 16 × 16 with 1

    def __post_init__(self) -> None:
        require(min(self.width, self.layers) >= 1, "discriminator", "width and layers must be at least 1")


@dataclass
class DiTConfig:
    """The audio-video diffusion transformer (section 3.2); presets are the files configs/dit/{S,B,L}.yaml."""

    depth: int = 12
    width: int = 768
    heads: int = 12
    mlp_ratio: int = 4
    context_tokens: int = 77
    context_width: int = 1024
    continuation: bool = False  # tokens of the clip before, and a control branch of half the depth that reads them
    attention: Backend = "auto"
    activation_checkpointing: Literal["none", "selective", "full"] = "none"  # see mmldm_scale/models/recompute.py
    compile: bool = False  # torch.compile each block: its element-wise work in fewer passes; needs a C++ compiler

    def __post_init__(self) -> None:
        require(self.width % self.heads == 0, "model.heads", f"must divide model.width = {self.width}")
        require(self.width % 4 == 0, "model.width", "must be a multiple of 4 (2-D sin-cos positions)")
        fit = self.depth >= 2 or not self.continuation
        require(fit, "model.depth", "must be at least 2 for model.continuation, whose branch has half as many blocks")


@dataclass
class DiffusionConfig:
    """Noise schedule, objective and task mixture of the DiT (section 3.3, PAPER values)."""

    steps: int = 1000  # timesteps of the noise schedule
    beta_start: float = 0.00085  # β of the first timestep
    beta_end: float = 0.0120  # β of the last timestep; between them √β is linear
    prediction: Literal["epsilon", "v", "flow"] = "epsilon"  # what the network predicts; see diffusion/noise_process.py
    min_snr: float = 0.0  # γ of Min-SNR weighting (arXiv 2303.09556 takes 5); 0: all timesteps have the same weight
    zero_terminal_snr: bool = False  # the last timestep is pure noise (arXiv 2305.08891)
    time_distribution: Literal["uniform", "logit_normal"] = "uniform"  # of the timesteps drawn in training
    audio_conditioned: float = 0.05  # share of training samples that see the clean audio latent
    video_conditioned: float = 0.05  # share that see the clean video latent
    continued: float = 0.0  # share that see the latents of the previous clip; needs model.continuation
    without_previous_video: float = 0.2  # share of these that see its sound alone (audio continuation)
    without_previous_audio: float = 0.2  # share of these that see its frames alone (video continuation)

    def __post_init__(self) -> None:
        for keys in (
            ("audio_conditioned", "video_conditioned", "continued"),
            ("without_previous_video", "without_previous_audio"),
        ):
            shares = [getattr(self, key) for key in keys]
            valid = min(shares) >= 0 and sum(shares) <= 1
            require(valid, "diffusion", f"{' + '.join(keys)} and each of them must lie in 0..1")
        require(
            0 < self.beta_start < self.beta_end < 1,
            "diffusion.beta_start",
            "must satisfy 0 < beta_start < beta_end < 1",
        )
        kind, flow = self.prediction, self.prediction == "flow"
        require(self.min_snr >= 0, "diffusion.min_snr", "must not be negative")
        require(
            not (flow and self.min_snr), "diffusion.min_snr", "must be 0 for prediction=flow; it weights epsilon and v"
        )
        reason = "a flow ends in pure noise anyway" if flow else "noise predicted from pure noise teaches nothing"
        valid = kind == "v" or not self.zero_terminal_snr
        require(valid, "diffusion.zero_terminal_snr", f"needs prediction=v, not {kind}: {reason}")
        valid = flow or self.time_distribution == "uniform"
        require(valid, "diffusion.time_distribution", f"{self.time_distribution} needs prediction=flow, not {kind}")


@dataclass
class ContextConfig:
    """What the DiT's context tokens are made of."""

    kind: Literal["none", "class", "text"] = "none"  # learned null tokens; the sample's class; embeddings of a text
    dropout: float = 0.1  # share of training samples that get the null context: what guidance needs
    embeddings: str = ""  # text: a safetensors file, (n ≤ context_tokens, context_width) for each video or label

    def __post_init__(self) -> None:
        require(0 <= self.dropout <= 1, "context.dropout", "must lie in 0..1")
        fit = (self.kind == "text") == bool(self.embeddings)
        require(fit, "context.embeddings", "names the file that context.kind=text needs, and no other kind does")


@dataclass
class DecodingConfig:
    """How the signal decoder draws pictures from perceptual latents."""

    sampler: str = "ddim"  # ddim (steps must divide 1000), dpm++ or unipc (any number of steps)
    steps: int = 50  # steps of the sampler
    audio_guidance: float = 1.0  # guidance scale of audio images, at least 1; 1: none, half the work. Public code: 1.5
    video_guidance: float = 1.0  # guidance scale of frames, likewise. Public code: 3.0
    pictures: int = 0  # how many pictures go through the U-Net together; 0: all of a batch of clips

    def __post_init__(self) -> None:
        require(self.steps >= 1, "decoding.steps", "must be at least 1")
        require(self.pictures >= 0, "decoding.pictures", "must not be negative")
        for key in ("audio_guidance", "video_guidance"):
            require(getattr(self, key) >= 1, f"decoding.{key}", "must be at least 1")
