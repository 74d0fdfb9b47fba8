"""Settings that the configurations of the trainables have in common, see ``mmldm_scale/trainables/*/config.py``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from omegaconf import MISSING

from mmldm_scale.common.addresses import path_key
from mmldm_scale.common.modalities import Modality
from mmldm_scale.config.check import require, require_within

Precision = Literal["fp32", "bf16", "fp16"]
AdversarialForm = Literal["log", "hinge", "hinge_linear"]
SHORTEST_EMA, LONGEST_EMA = 0.001, 0.28  # limits of training.ema_lengths; the plain mean of the whole past has 0.289
REDUCE_BUCKET = 500_000_000  # numbers in DeepSpeed's buffer for gradients, its default
VERSION = 2  # of what the settings mean; training/earlier_settings.py says how runs of earlier ones are resumed


@dataclass
class TrainingConfig:
    """What every training has; lengths and intervals in samples must be multiples of ``global_batch``."""

    seed: int = 0  # seed of the weights, the data order and the noise
    total_samples: int = 2_560_000  # [samples] length of the training
    global_batch: int = 128  # [samples] size of an optimizer step over all processes; a multiple of micro_batch
    # [samples] computed at once by each process; gradients are accumulated until global_batch is reached
    micro_batch: int = 16
    learning_rate: float = 1e-4  # learning rate of Adam
    warmup_samples: int = 0  # [samples] the learning rate rises linearly over this many
    betas: tuple[float, float] = (0.9, 0.999)  # β₁ and β₂ of Adam
    weight_decay: float = 0.0  # weight decay of AdamW
    gradient_clip: float = 1.0  # largest global norm of the gradients; 0: no clipping
    # [share of the run so far] lengths of the averages of the weights (EMA): standard deviation of what an average
    # remembers; in 0.001..0.28; previews, validation and export use the first
    ema_lengths: list[float] = field(default_factory=lambda: [0.05, 0.10])
    ema_snapshot_every: int = 0  # [samples] store the averages, to make others of them later; 0: never
    precision: Precision = "bf16"  # of weights and activations; the optimizer keeps float32 weights
    zero_stage: Literal[0, 1, 2, 3] = 1  # DeepSpeed's ZeRO: 1 splits the optimizer state, 2 gradients, 3 weights too
    offload_optimizer: bool = False  # keep the optimizer state in host memory; needs zero_stage 1, 2 or 3
    workers: int = 4  # loader processes of each training process; 0: it loads its data itself
    log_every: int = 1_280  # [samples] write the mean losses since the last record, and the speed, to the log
    checkpoint_every: int = 128_000  # [samples] save a checkpoint
    checkpoint_minutes: float = 30.0  # [minutes] save one as well if so much time has passed since the last; 0: never
    preview_every: int = 128_000  # [samples] write pictures, sound and video to TensorBoard
    preview_minutes: float = 30.0  # [minutes] write some as well if so much time has passed since the last; 0: never
    validate_every: int = 0  # [samples] measure the loss on the validation sets; 0: with each checkpoint
    # [samples] number of samples to measure it on; a power of two covers the timesteps most evenly
    validation_samples: int = 512
    profile_steps: int = 0  # [optimizer steps] trace this many with torch.profiler after each start; 0: none
    # how many checkpoints to keep: the newest, then the newest at multiples of checkpoint_every
    keep_checkpoints: int = 3
    keep_every: int = 0  # [samples] never delete checkpoints at multiples of this; 0: keep the newest only
    skip_limit: int = 10  # [optimizer steps] after so many skipped in a row the run returns to its last checkpoint
    # skip a step whose loss or gradient norm exceeds the median of the last steps by this factor; 0: never
    spike_factor: float = 0.0
    collective_timeout: float = 600.0  # [seconds] a process that waits longer, for others or for data, counts as hung
    deepspeed: dict[str, Any] = field(default_factory=dict)  # added to DeepSpeed's configuration as it is

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_multiples()
        problem = "true: needs zero_stage 1, 2 or 3, not 0"
        require(not (self.offload_optimizer and self.zero_stage == 0), "training.offload_optimizer", problem)

    def reduce_bucket(self, trained: int) -> int:
        """Return how many numbers DeepSpeed's buffer for gradients holds, in the engine of ``trained`` parameters.

        DeepSpeed allocates the whole buffer, however few gradients there are.

        Raises:
            UserError: ``deepspeed.zero_optimization.reduce_bucket_size`` is no number of at least 1.
        """
        zero = self.deepspeed.get("zero_optimization")
        size = zero.get("reduce_bucket_size", REDUCE_BUCKET) if isinstance(zero, dict) else REDUCE_BUCKET
        valid = isinstance(size, int | float) and size >= 1
        require(valid, "training.deepspeed.zero_optimization.reduce_bucket_size", f"{size}: must be at least 1")
        return int(min(size, trained))

    def _check_ranges(self) -> None:
        counts = ("total_samples", "global_batch", "micro_batch", "keep_checkpoints", "skip_limit")
        for key in (*counts, "validation_samples", "log_every", "checkpoint_every", "preview_every"):
            require(getattr(self, key) >= 1, f"training.{key}", f"{getattr(self, key)}: must be at least 1")
        for key in ("ema_snapshot_every", "keep_every", "validate_every", "profile_steps"):
            require(getattr(self, key) >= 0, f"training.{key}", f"{getattr(self, key)}: must be at least 0")
        require_within(self, "training", seed=(0, 2**63 - 1), warmup_samples=(0, math.inf), workers=(0, 1024))
        for key in ("checkpoint_minutes", "preview_minutes"):
            minutes = getattr(self, key)
            require(0 <= minutes < math.inf, f"training.{key}", f"{minutes:g}: must be at least 0, and finite")
        rate, factor, lengths = self.learning_rate, self.spike_factor, self.ema_lengths
        require(0 < rate < math.inf, "training.learning_rate", f"{rate:g}: must be greater than 0, and finite")
        valid = all(0 <= beta < 1 for beta in self.betas)
        require(valid, "training.betas", f"{list(self.betas)}: must be two numbers in 0..1, and less than 1")
        limit = self.collective_timeout
        require(0 < limit < math.inf, "training.collective_timeout", f"{limit:g}: must be greater than 0, and finite")
        valid = factor == 0 or factor > 1
        require(valid, "training.spike_factor", f"{factor:g}: must be 0 or greater than 1")
        valid = len(set(lengths)) == len(lengths) > 0 and all(SHORTEST_EMA <= n <= LONGEST_EMA for n in lengths)
        problem = f"{lengths}: must be one or more different numbers in {SHORTEST_EMA}..{LONGEST_EMA}"
        require(valid, "training.ema_lengths", problem)

    def _check_multiples(self) -> None:
        intervals = ("log_every", "checkpoint_every", "preview_every", "validate_every", "ema_snapshot_every")
        for key in ("total_samples", *intervals):
            self._check_multiple(key, "global_batch")
        self._check_multiple("keep_every", "checkpoint_every")
        problem = f"{self.micro_batch}: must divide global_batch = {self.global_batch}"
        require(self.global_batch % self.micro_batch == 0, "training.micro_batch", problem)

    def _check_multiple(self, key: str, of: str) -> None:
        """Raise UserError, which names the nearest multiple, unless the value of ``key`` is a multiple of ``of``'s."""
        value, unit = getattr(self, key), getattr(self, of)
        nearest = max(unit, round(value / unit) * unit)
        problem = f"{value}: must be a multiple of {of} = {unit}, such as {nearest}"
        require(value % unit == 0, f"training.{key}", problem)


@dataclass
class ReadingConfig:
    """How the shards are read; of these settings only ``window`` changes what is trained, by its order."""

    window: int = 64  # [shards] number of shards whose samples are shuffled together
    stage: str = path_key("")  # folder on the node's own disk to copy shards to before use; sets at a URL need one
    stage_gigabytes: float = 200.0  # [GB] size of that folder; the shards used longest ago are deleted first
    damaged_share: float = 0.001  # [0..1] the run stops when more of the samples are damaged; others replace them

    def __post_init__(self) -> None:
        require(self.window >= 1, "reading.window", f"{self.window}: must be at least 1 shard")
        size, share = self.stage_gigabytes, self.damaged_share
        require(size > 0, "reading.stage_gigabytes", f"{size:g}: must be greater than 0")
        require(0 <= share < 1, "reading.damaged_share", f"{share:g}: must be in 0..1, and less than 1")


@dataclass
class ShardTraining:
    """What the configuration of every trainable begins with: its name, its folder, its data and its training."""

    trainable: str = ""  # what is trained; set by the command
    version: int = VERSION  # of what the settings mean, so that a run keeps its meaning; set by the command
    run: str = path_key(MISSING)  # folder of the run
    restart: bool = False  # whether a run whose checkpoints are all gone may start again from 0 samples
    # begin with these weights instead of random ones: a run, checkpoint or weights folder of this trainable; null: none
    init: str | None = path_key(None)
    shards: list[str] = MISSING  # folders or URLs of finished shard sets; one alone needs no brackets
    # how often a sample is drawn from each set, relative to the others; empty: by their numbers of samples
    weights: list[float] = field(default_factory=list)
    reading: ReadingConfig = field(default_factory=ReadingConfig)  # how shards are read
    training: TrainingConfig = field(default_factory=TrainingConfig)  # optimizer, precision, intervals

    def __post_init__(self) -> None:
        own = next(field.default for field in fields(self) if field.name == "trainable")
        require(self.trainable == own, "trainable", f"{self.trainable}, but this is `mmldm train {own}`")
        require(self.version == VERSION, "version", f"{self.version}: must be {VERSION}, this program's; leave it out")
        require(bool(self.run), "run", "'': must name a folder")
        sets, weights = self.shards, self.weights
        require(all(sets), "shards", f"{sets}: each must name a folder or a URL")
        require(len(sets) > 0, "shards", "[]: must name at least one set")
        require(
            len(set(sets)) == len(sets), "shards", f"{sets}: must name each set once; weights says how often it is used"
        )
        require(
            len(weights) in (0, len(sets)),
            "weights",
            f"{weights}: must be {len(sets)} numbers, one for each set, or none",
        )
        require(all(0 < w < math.inf for w in weights), "weights", f"{weights}: must be greater than 0, and finite")


@dataclass
class LossWeights:
    """How much the errors of the two modalities count in the mean squared error; not both 0."""

    audio: float = 1.0  # weight of the audio's error
    video: float = 1.0  # weight of the video's error

    def __post_init__(self) -> None:
        for key in ("audio", "video"):
            value = getattr(self, key)
            require(0 <= value < math.inf, f"loss_weights.{key}", f"{value:g}: must be at least 0, and finite")
        require(self.audio + self.video > 0, "loss_weights", "audio=0 and video=0: one must be greater than 0")

    def check(self, modalities: Sequence[Modality]) -> None:
        """Raise UserError if the model's only modality has weight 0; that of a missing one has no effect."""
        if len(modalities) == 1:
            key, value = f"loss_weights.{modalities[0]}", getattr(self, modalities[0])
            require(value > 0, key, f"{value:g}: must be greater than 0, the model's only modality")


@dataclass
class AdversarialConfig:
    """How a discriminator takes part in a training; what else its optimizer needs is in ``training``."""

    weight: float = 0.1  # λ_gan, weight of the adversarial term in the model's loss; 0: no discriminator
    # the losses' form: log is Eq. 2 of the paper, hinge the public code's, hinge_linear latent diffusion's for KL-VAEs
    loss: AdversarialForm = "log"
    after: int = 0  # [samples] the discriminator begins to learn after this many
    ramp: int = 0  # [samples] from there the term's weight rises linearly over this many
    learning_rate: float = 1e-4  # learning rate of the discriminator's Adam
    betas: tuple[float, float] = (0.5, 0.9)  # β₁ and β₂ of the discriminator's Adam

    def __post_init__(self) -> None:
        for key in ("weight", "after", "ramp"):
            require(getattr(self, key) >= 0, f"adversarial.{key}", f"{getattr(self, key):g}: must be at least 0")
        rate = self.learning_rate
        require(rate > 0, "adversarial.learning_rate", f"{rate:g}: must be greater than 0")


@dataclass
class ContrastiveConfig:
    """The contrastive loss for synchrony of sound and pictures; ours."""

    weight: float = 0.0  # weight of the term in the DiT's loss; 0: no such term, a quarter of the arithmetic
    temperature: float = 0.1  # τ: the difference of two errors at which they count as clearly different

    def __post_init__(self) -> None:
        require(self.weight >= 0, "contrastive.weight", f"{self.weight:g}: must be at least 0")
        require(self.temperature > 0, "contrastive.temperature", f"{self.temperature:g}: must be greater than 0")
