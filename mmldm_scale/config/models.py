"""Settings of the networks, of the diffusion process and of the signal decoder's sampling."""

from dataclasses import dataclass, field
from typing import Literal

from mmldm_scale.common.addresses import path_key
from mmldm_scale.common.modalities import MODALITIES, Modality
from mmldm_scale.config.check import require, require_modalities, require_within

Backend = Literal["auto", "flash", "flash4", "xformers", "sdpa", "math"]


@dataclass
class KLVAEConfig:
    """A KL-VAE trained from scratch; it reduces pictures by f = 2 ** (len(channels) - 1)."""

    channels: list[int] = field(default_factory=lambda: [128, 256, 512, 512])  # width of each level
    blocks: int = 2  # residual blocks of each level
    latent_channels: int = 4  # channels of a latent


@dataclass
class EncoderConfig:
    """An audio or video encoder on the KL-VAE's latents; each level after the first halves height and width."""

    width: int = 320  # channels of the first level
    multipliers: list[int] = field(default_factory=lambda: [1, 2])  # channels of each level, in units of width
    blocks: int = 2  # residual blocks of each level
    heads: int = 8  # attention heads at the last level
    # video encoder: the indices of the frames that it sees (the public code: 0, 5, 10, 15); empty: all frames
    key_frames: list[int] = field(default_factory=list)


@dataclass
class UNetConfig:
    """The signal decoder; the defaults are Stable Diffusion 1.5's geometry."""

    width: int = 320  # channels of the first level
    multipliers: list[int] = field(default_factory=lambda: [1, 2, 4, 4])  # channels of each level, in units of width
    blocks: int = 2  # residual blocks of each level
    attention: list[bool] = field(default_factory=lambda: [True, True, True, False])  # cross-attention, by level
    heads: int = 8  # attention heads
    # where the perceptual latent's features are added: to the hidden states inside the U-Net's encoder, as in the
    # public code, or only to its skips; both add to the middle's output
    features: Literal["inside", "skips"] = "inside"
    # ours, for training from scratch: estimate the noise from the features alone; the U-Net corrects the estimate
    estimate: bool = False

    def __post_init__(self) -> None:
        require(
            len(self.attention) == len(self.multipliers),
            "model.decoder.attention",
            f"{len(self.attention)} entries: must be {len(self.multipliers)}, one for each level",
        )


@dataclass
class AutoencoderConfig:
    """The hierarchical multi-modal autoencoder (section 3.1 of the paper)."""

    # what it encodes and decodes: [audio, video], or one alone, [video] or [audio] (MM-LDM-v and MM-LDM-a of Table 1);
    # keys of the other modality then have no effect
    modalities: list[Modality] = field(default_factory=lambda: list(MODALITIES))
    latent_channels: int = 16  # channels of a perceptual latent
    audio_encoder: EncoderConfig = field(
        default_factory=lambda: EncoderConfig(multipliers=[1, 2, 4])
    )  # the audio encoder, f_a = 4
    video_encoder: EncoderConfig = field(default_factory=EncoderConfig)  # the video encoder, f_v = 2
    shortcut: bool = False  # ours: add the KL-VAE's latents, averaged over space, to the encoders' means
    # projectors with classification and contrastive heads, and cross-attention on the other modality's semantics; with
    # one modality alone (ours): its projector and the classification head, where clips have classes
    semantics: bool = True
    semantic_width: int = 768  # width of the semantic vectors and of the cross-attention
    contrastive_width: int = 256  # width of the vectors that the contrastive head compares; 0: no head
    # the projectors' losses do not train the encoders, as in the public code, which says that training blows up late
    # otherwise; the paper does not say
    detach_projectors: bool = True
    decoder: UNetConfig = field(default_factory=UNetConfig)  # the signal decoder
    shared_decoder: bool = True  # one U-Net for both modalities; false: one for each (first row of Table 5)
    pooled_latent: bool = True  # add the pooled latent to the time embedding
    activation_checkpointing: bool = False  # recompute encoders, U-Net and KL-VAE decoder in the backward pass

    def __post_init__(self) -> None:
        frames = self.audio_encoder.key_frames
        require(not frames, "model.audio_encoder.key_frames", f"{frames}: must be empty; only videos have frames")
        require_modalities(self.modalities, "model.modalities")


@dataclass
class DiscriminatorConfig:
    """The discriminator of an audio image and two frames (Eq. 2); each level after the first halves the pictures."""

    width: int = 32  # channels of the first level
    # channels of each level, in units of width
    multipliers: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 4, 6, 6])
    blocks: int = 1  # residual blocks of each level
    attention: int = 4  # [levels] how many of the last ones attend to all three pictures
    heads: int = 4  # attention heads

    def __post_init__(self) -> None:
        levels = len(self.multipliers)
        problem = f"{self.attention}: must be in 0..{levels}, the number of levels"
        require(0 <= self.attention <= levels, "discriminator.attention", problem)
        odd = [w for m in self.multipliers[levels - self.attention :] if (w := m * self.width) % self.heads]
        problem = f"{self.heads}: must divide the width of each level with attention: {odd}"
        require(not odd, "discriminator.heads", problem)


@dataclass
class PatchDiscriminatorConfig:
    """The discriminator of single pictures, with one output for each patch."""

    width: int = 64  # channels of the first layer
    layers: int = 3  # strided layers: with 3 an output sees 70 × 70 pixels, with 2 34 × 34, with 1 16 × 16

    def __post_init__(self) -> None:
        for key in ("width", "layers"):
            require(getattr(self, key) >= 1, f"discriminator.{key}", f"{getattr(self, key)}: must be at least 1")


@dataclass
class DiTConfig:
    """The audio-video diffusion transformer (section 3.2); the presets S, B and L have the paper's sizes."""

    # whose latents it generates: [audio, video], or one alone, [video] or [audio]; the shard sets must have the same
    modalities: list[Modality] = field(default_factory=lambda: list(MODALITIES))
    depth: int = 12  # transformer blocks
    width: int = 768  # width of a token; a multiple of 4 and of heads
    heads: int = 12  # attention heads
    mlp_ratio: int = 4  # hidden width of a block's MLP, in units of width
    context_tokens: int = 77  # [tokens] length of the context; 0: no context
    context_width: int = 1024  # width of a context token before its projection to width
    # continue clips: context tokens of the previous clip, and a control branch of depth / 2 that reads it
    continuation: bool = False
    attention: Backend = "auto"  # kernel of the attention; auto: the fastest one on this device
    # what the backward pass recomputes, to save memory: nothing; all but matrix products and attention; everything
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    compile: bool = False  # torch.compile each block, which fuses element-wise operations; needs a C++ compiler

    def __post_init__(self) -> None:
        require_within(self, "model", depth=(1, 1000), width=(4, 65536), heads=(1, 1024), mlp_ratio=(1, 64))
        require_within(self, "model", context_tokens=(0, 65536), context_width=(1, 65536))
        problem = f"{self.heads}: must divide model.width = {self.width}"
        require(self.width % self.heads == 0, "model.heads", problem)
        problem = f"{self.width}: must be a multiple of 4, for the 2-D sin-cos positions"
        require(self.width % 4 == 0, "model.width", problem)
        problem = f"{self.depth}: must be at least 2 with model.continuation, whose branch has half as many blocks"
        require(self.depth >= 2 or not self.continuation, "model.depth", problem)
        require_modalities(self.modalities, "model.modalities")
        problem = f"true: must be false with model.modalities=[{self.modalities[0]}]: a clip of both is continued"
        require(len(self.modalities) > 1 or not self.continuation, "model.continuation", problem)


@dataclass
class DiffusionConfig:
    """Noise schedule, objective and task mixture of the DiT (sections 3.2 and 3.3).

    The schedule is latent diffusion's, which the paper does not name.
    """

    steps: int = 1000  # timesteps of the noise schedule
    beta_start: float = 0.00085  # β of the first timestep
    beta_end: float = 0.0120  # β of the last timestep; between them √β is linear
    prediction: Literal["epsilon", "v", "flow"] = "epsilon"  # what the network predicts; see diffusion/noise_process.py
    min_snr: float = 0.0  # γ of Min-SNR weighting (arXiv 2303.09556 takes 5); 0: all timesteps have the same weight
    zero_terminal_snr: bool = False  # the last timestep is pure noise (arXiv 2305.08891)
    time_distribution: Literal["uniform", "logit_normal"] = "uniform"  # of the timesteps drawn in training
    audio_conditioned: float = 0.05  # share of training samples that see the clean audio latent
    video_conditioned: float = 0.05  # share that see the clean video latent
    # share of samples, whatever else they see, that see the latents of the previous clip; needs model.continuation
    continued: float = 0.0
    without_previous_video: float = 0.2  # share of these that see its sound alone (audio continuation)
    without_previous_audio: float = 0.2  # share of these that see its frames alone (video continuation)

    def __post_init__(self) -> None:
        require_within(self, "diffusion", steps=(1, 1_000_000), continued=(0, 1))
        for keys in (
            ("audio_conditioned", "video_conditioned"),
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

    kind: Literal["none", "class", "text"] = "none"  # learned null tokens, the sample's class, or text embeddings
    dropout: float = 0.1  # [0..1] share of training samples with the null context, which guidance needs
    # kind=text: a safetensors file with one tensor (n ≤ context_tokens, context_width) for each video or label
    embeddings: str = path_key("")

    def __post_init__(self) -> None:
        require(0 <= self.dropout <= 1, "context.dropout", f"{self.dropout:g}: must be in 0..1")
        needs = "must name a file" if self.kind == "text" else "must be empty"
        problem = f"{self.embeddings!r}: {needs} with context.kind={self.kind}"
        require((self.kind == "text") == bool(self.embeddings), "context.embeddings", problem)


@dataclass
class DecodingConfig:
    """How the signal decoder draws pictures from perceptual latents."""

    sampler: str = "ddim"  # ddim, dpm++ or unipc
    steps: int = 50  # steps of the sampler, 1 to 1000
    audio_guidance: float = 1.0  # guidance scale of audio images, at least 1; 1 (ours): none, half the work
    video_guidance: float = 1.0  # guidance scale of frames, likewise
    pictures: int = 0  # how many pictures go through the U-Net together; 0: all of a batch of clips

    def __post_init__(self) -> None:
        require(self.steps >= 1, "decoding.steps", "must be at least 1")
        require(self.pictures >= 0, "decoding.pictures", "must not be negative")
        for key in ("audio_guidance", "video_guidance"):
            require(getattr(self, key) >= 1, f"decoding.{key}", "must be at least 1")
