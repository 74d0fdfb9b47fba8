"""The typed configuration tree and how it is put together.

A command's configuration is one of the dataclasses below: its defaults, then YAML files in the order given, then
``key.sub=value`` overrides. ``load(DiTTraining, ["configs/dit/L.yaml"], ["training.seed=1"])`` returns it checked;
whatever does not fit raises :class:`UserError` naming the source, the key and what would fit. Lengths and intervals of
training are in samples: ``samples_seen`` is the only clock.
"""

import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_origin

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmldm_scale.errors import UserError

Backend = Literal["auto", "flash", "xformers", "sdpa", "math"]
Precision = Literal["fp32", "bf16", "fp16"]
MAX_DEPTH = 100  # of what a configuration file nests
GenerationTask = Literal["svg", "a2v", "v2a"]  # joint; video to given audio; audio to given video


def require(fits: bool, key: str, problem: str) -> None:
    """Raise UserError, "key: problem", unless the value of ``key`` ``fits``."""
    if not fits:
        raise UserError(f"{key}: {problem}")


# --- media: what a clip is -------------------------------------------------------------------------------------------


@dataclass
class AudioImageConfig:
    """The mel spectrogram that stands for a clip's sound; the defaults are HiFi-GAN's at 22,050 Hz."""

    sample_rate: int = 22050  # Hz
    n_fft: int = 1024  # samples
    win_length: int = 1024  # samples
    hop_length: int = 256  # samples
    n_mels: int = 80
    f_min: float = 0.0  # Hz
    f_max: float = 8000.0  # Hz
    floor_db: float = -80.0  # this level and below is the image's darkest value
    ceiling_db: float = 20.0  # this level and above is its brightest

    def __post_init__(self) -> None:
        require(self.f_max <= self.sample_rate / 2, "media.audio.f_max", f"at most {self.sample_rate / 2:g} Hz fits")
        require(self.win_length <= self.n_fft, "media.audio.win_length", f"at most n_fft = {self.n_fft} fits")
        require(self.floor_db < self.ceiling_db, "media.audio.floor_db", "must lie below ceiling_db")
        require(min(self.hop_length, self.n_mels) > 0, "media.audio", "hop_length and n_mels must be positive")


@dataclass
class MediaConfig:
    """A clip: ``frames`` pictures of ``size`` × ``size`` pixels at ``fps`` and the sound of just that time."""

    frames: int = 16
    fps: float = 10.0  # frames per second
    size: int = 256  # pixels
    fit: Literal["crop", "pad"] = "crop"  # how a picture that is not square becomes square
    audio: AudioImageConfig = field(default_factory=AudioImageConfig)

    def __post_init__(self) -> None:
        require(self.frames >= 1, "media.frames", "must be at least 1")
        require(self.fps > 0, "media.fps", "must be positive")
        require(self.size >= 8, "media.size", "must be at least 8 pixels")

    @property
    def seconds(self) -> float:
        """Length of a clip in seconds."""
        return self.frames / self.fps

    @property
    def audio_samples(self) -> int:
        """Length of a clip's waveform in samples."""
        return round(self.seconds * self.audio.sample_rate)


# --- models ----------------------------------------------------------------------------------------------------------


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
    semantic_width: int = 768
    decoder: UNetConfig = field(default_factory=UNetConfig)


@dataclass
class DiTConfig:
    """The audio-video diffusion transformer (section 3.2); presets are the files configs/dit/{S,B,L}.yaml."""

    depth: int = 12
    width: int = 768
    heads: int = 12
    mlp_ratio: int = 4
    context_tokens: int = 77
    context_width: int = 1024
    attention: Backend = "auto"
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        require(self.width % self.heads == 0, "model.heads", f"must divide model.width = {self.width}")
        require(self.width % 4 == 0, "model.width", "must be a multiple of 4 (2-D sin-cos positions)")


@dataclass
class DiffusionConfig:
    """Noise schedule and task mixture of the DiT (section 3.3, PAPER values)."""

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.0120
    audio_conditioned: float = 0.05  # share of training samples that see the clean audio latent
    video_conditioned: float = 0.05  # share that see the clean video latent

    def __post_init__(self) -> None:
        shares = self.audio_conditioned + self.video_conditioned
        require(0 <= shares <= 1, "diffusion", "audio_conditioned + video_conditioned must lie in 0..1")
        require(0 < self.beta_start < self.beta_end < 1, "diffusion.beta_start", "0 < beta_start < beta_end < 1 fits")


# --- training --------------------------------------------------------------------------------------------------------


@dataclass
class TrainingConfig:
    """What every trainer shares. Lengths and intervals are in samples and whole multiples of ``global_batch``."""

    seed: int = 0
    total_samples: int = 2_560_000
    global_batch: int = 128  # samples an optimizer step, over all processes
    micro_batch: int = 16  # samples a process takes at once; accumulation follows from the number of processes
    learning_rate: float = 1e-4
    warmup_samples: int = 0  # the learning rate rises linearly over this many
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    gradient_clip: float = 1.0  # global norm; 0 switches clipping off
    ema_halflife_samples: int = 500_000  # after this many the averaged weights have forgotten half
    precision: Precision = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload_optimizer: bool = False  # optimizer state in host memory (ZeRO 1 to 3)
    workers: int = 4  # loader processes of each training process; 0 loads in the training process
    log_every: int = 1_280
    checkpoint_every: int = 128_000
    preview_every: int = 128_000  # pictures, sound and video into TensorBoard
    keep_checkpoints: int = 3
    collective_timeout: float = 600.0  # seconds that a process waits for the others
    deepspeed: dict[str, Any] = field(default_factory=dict)  # raw additions to DeepSpeed's configuration

    def __post_init__(self) -> None:
        for key in ("total_samples", "global_batch", "micro_batch", "keep_checkpoints"):
            require(getattr(self, key) >= 1, f"training.{key}", "must be at least 1")
        for key in ("total_samples", "log_every", "checkpoint_every", "preview_every"):
            value, batch = getattr(self, key), self.global_batch
            fit = max(batch, round(value / batch) * batch)
            require(
                value % batch == 0, f"training.{key}", f"{value} is no multiple of global_batch = {batch}; {fit} fits"
            )
        require(
            self.global_batch % self.micro_batch == 0,
            "training.micro_batch",
            f"{self.micro_batch} does not divide global_batch = {self.global_batch}",
        )
        require(
            not (self.offload_optimizer and self.zero_stage == 0),
            "training.offload_optimizer",
            "needs zero_stage 1, 2 or 3",
        )
        require(self.learning_rate > 0, "training.learning_rate", "must be positive")
        require(self.ema_halflife_samples > 0, "training.ema_halflife_samples", "must be positive")


@dataclass
class ReadingConfig:
    """How a trainer reads its shards; only ``window`` changes what it learns from, and only in its order."""

    window: int = 64  # shards whose samples are shuffled together; see mmldm_scale/shards/order.py
    stage: str = ""  # folder on the node's own disk where shards are copied to before use; sets at a URL need one
    stage_gigabytes: float = 200.0  # room there; what was used longest ago goes first
    damaged_share: float = 0.001  # of the samples that may turn out damaged, and be replaced, before the run stops

    def __post_init__(self) -> None:
        require(self.window >= 1, "reading.window", "must be at least 1 shard")
        require(self.stage_gigabytes > 0, "reading.stage_gigabytes", "must be positive")
        require(0 <= self.damaged_share < 1, "reading.damaged_share", "must lie in 0..1")


@dataclass
class ShardTraining:
    """What every trainer says of its data: one set of shards, or several mixed."""

    shards: list[str] = MISSING  # folders or URLs of finished sets; a single one may stand without brackets
    weights: list[float] = field(default_factory=list)  # how often each set's turn comes; none: by its samples
    reading: ReadingConfig = field(default_factory=ReadingConfig)

    def __post_init__(self) -> None:
        require(len(self.shards) > 0, "shards", "at least one set is needed")
        require(len(set(self.shards)) == len(self.shards), "shards", "a set is named twice; weights say how often")
        count, given = len(self.shards), len(self.weights)
        require(given in (0, count), "weights", f"{given} weights for {count} sets; one each fits, or none")
        require(all(0 < weight < math.inf for weight in self.weights), "weights", "must be positive")


@dataclass
class KLVAETraining(ShardTraining):
    """``mmldm train kl-vae``: a small KL-VAE from scratch, on the frames and audio images of clip shards."""

    run: str = "runs/kl_vae"
    model: KLVAEConfig = field(default_factory=KLVAEConfig)
    audio_share: float = 0.25  # of the samples; the others are video frames
    kl_weight: float = 1e-6
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass
class AutoencoderTraining(ShardTraining):
    """``mmldm train autoencoder``: encoders, projectors and signal decoder, on clip shards."""

    run: str = "runs/autoencoder"
    kl_vae: str = "???"  # folder of a diffusers AutoencoderKL (Stable Diffusion's `vae`), or a kl-vae run
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    kl_weight: float = 1e-9  # paper: 1e-9 Landscape, 1e-8 AIST++
    estimate_weight: float = 1.0  # of the estimates' squared error, where model.decoder.estimate is on
    frames_per_clip: int = 2  # target frames of each clip in a step
    flip: float = 0.5  # share of clips mirrored
    preview_steps: int = 20  # DDIM steps of the previews
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass
class DiTTraining(ShardTraining):
    """``mmldm train dit``: the diffusion transformer, on latent shards."""

    run: str = "runs/dit"
    model: DiTConfig = field(default_factory=DiTConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    flip: float = 0.5  # share of samples that use the mirrored video's latent
    training: TrainingConfig = field(default_factory=TrainingConfig)


# --- sampling --------------------------------------------------------------------------------------------------------


@dataclass
class Sampling:
    """``mmldm sample``: the sampler's settings."""

    seed: int = 0
    steps: int = 50  # DDIM steps of the DiT
    audio_guidance: float = 2.5  # of a generated audio latent, conditioned on video (Landscape, AIST++; AudioSet 1.5)
    video_guidance: float = 2.5  # of a generated video latent, conditioned on audio (Landscape, AIST++; AudioSet 3.0)
    decode_steps: int = 50  # DDIM steps of the signal decoder
    batch_size: int = 8
    vocoder: str | None = None  # folder of a HiFi-GAN in transformers' format; none: Griffin-Lim
    attention: Backend = "auto"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        for key in ("steps", "decode_steps", "batch_size"):
            require(getattr(self, key) >= 1, key, "must be at least 1")


# --- putting it together ---------------------------------------------------------------------------------------------

Schema = TypeVar("Schema")


def load(schema: type[Schema], files: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> Schema:
    """Compose defaults, YAML ``files`` (later ones win) and ``key=value`` ``overrides`` into a checked ``schema``.

    Raises:
        UserError: a file is missing or no YAML; a key is unknown, missing or of the wrong type; values do not fit
            together.
    """
    sources = [(str(file), _read_yaml(Path(file))) for file in files]
    return _compose(schema, [*sources, *((f"{text!r:.200}", _parse_override(text)) for text in overrides)])


def restore(schema: type[Schema], values: dict[str, Any], name: str) -> Schema:
    """Return the ``schema`` that ``dataclasses.asdict`` made ``values`` of; raise UserError, naming ``name``, else."""
    return _compose(schema, [(name, values)])


def _compose(schema: type[Schema], sources: list[tuple[str, Any]]) -> Schema:
    config = OmegaConf.structured(schema)
    for name, part in sources:
        try:
            config = OmegaConf.merge(config, _with_lists(part, schema))
        except (OmegaConfBaseException, TypeError) as error:
            raise UserError(f"{name}: {_explain(error, schema)}") from None
    try:
        missing = sorted(OmegaConf.missing_keys(config))
    except OmegaConfBaseException as error:  # a reference to another key that is not there, or does not fit here
        raise UserError(_explain(error, schema)) from None
    if missing:
        raise UserError(f"{', '.join(missing)}: not set; give {missing[0]}=VALUE or set it in a --config file")
    try:
        return OmegaConf.to_object(config)  # type: ignore[return-value]
    except UserError as error:
        where = ", ".join(name for name, _ in sources) or "defaults"
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from None
    except OmegaConfBaseException as error:
        raise UserError(_explain(error, schema)) from None


def dump(config: object) -> str:
    """Return ``config`` (one of the dataclasses above) as YAML that :func:`load` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _read_yaml(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"{file}: no such configuration file")
    if file.stat().st_size > 1 << 20:
        raise UserError(f"{file}: larger than 1 MiB, so no configuration file of ours")
    try:
        _check_depth(file.read_text("utf-8"))
        return OmegaConf.load(file)
    except Exception as error:  # the YAML library's errors share no narrower base class with OmegaConf's
        raise UserError(f"{file}: not valid YAML: {' '.join(str(error).split())[:200]}") from None


def _check_depth(text: str) -> None:
    """Raise ValueError if lists and mappings lie too deep in ``text``: loading recurses in C, and would crash."""
    depth = 0
    for event in yaml.parse(text, yaml.CSafeLoader):  # these come one by one
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"lists and mappings in one another, more than {MAX_DEPTH} deep")


def _with_lists(part: Any, schema: type) -> Any:
    """Return ``part`` with a list of one in place of a single value, for those keys of ``schema`` that are lists."""
    if not OmegaConf.is_dict(part):
        return part
    values = OmegaConf.to_container(part)
    for key in [f.name for f in dataclasses.fields(schema) if get_origin(f.type) is list]:
        if not isinstance(values.get(key, []), list):
            values[key] = [values[key]]
    return values


def _parse_override(text: str) -> Any:
    key, equals, _ = text.partition("=")
    if not equals or not key:
        raise UserError(f"{text!r:.200}: an override has the form key.sub=value")
    try:
        return OmegaConf.from_dotlist([text])
    except Exception as error:  # as above
        raise UserError(f"{text!r:.200}: {' '.join(str(error).split())[:200]}") from None


def _explain(error: Exception, schema: type) -> str:
    """Turn an OmegaConf error into one line that names the key and what would fit."""
    key = getattr(error, "full_key", None)
    message = str(getattr(error, "msg", None) or error).splitlines()[0]
    if not key:
        return message
    owner, leaf = _owner(schema, str(key))
    if owner is None:
        return f"{key}: {message}"
    names = [f.name for f in dataclasses.fields(owner)]
    if leaf.partition("[")[0] in names:  # "weights[0]" is an entry of "weights"
        return f"{key}: {message}"
    close = difflib.get_close_matches(leaf, names, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{key}: unknown key; {hint}keys here: {', '.join(names)}"


def _owner(schema: type, key: str) -> tuple[type | None, str]:
    """Return the dataclass that ``key`` (dotted) points into, and the key's last part."""
    *path, leaf = key.split(".")
    owner: type | None = schema
    for part in path:
        kinds = {f.name: f.type for f in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else {}
        owner = kinds.get(part) if isinstance(kinds.get(part), type) else None  # type: ignore[assignment]
    return (owner if dataclasses.is_dataclass(owner) else None), leaf
