"""What the trainers are told, each of which is one of the last classes here."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from omegaconf import MISSING

from mmldm_scale.config.check import require

Precision = Literal["fp32", "bf16", "fp16"]
SHORTEST_EMA, LONGEST_EMA = (
    0.001,
    0.28,
)  # lengths as training/engine/ema.py means them; the whole past's plain mean has 0.289


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
    ema_lengths: list[float] = field(
        default_factory=lambda: [0.05, 0.10]
    )  # see training/engine/ema.py; the first is in use
    ema_snapshot_every: int = 0  # what averages of other lengths can be made of later; 0: nothing is kept for them
    precision: Precision = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload_optimizer: bool = False  # optimizer state in host memory (ZeRO 1 to 3)
    workers: int = 4  # loader processes of each training process; 0 loads in the training process
    log_every: int = 1_280
    checkpoint_every: int = 128_000
    preview_every: int = 128_000  # pictures, sound and video into TensorBoard
    validate_every: int = 0  # the loss on held-out sets, where there are any; 0: with each checkpoint
    validation_samples: int = 512  # of them; powers of two cover the timesteps most evenly
    profile_steps: int = 0  # to be traced by torch.profiler after each start of the run
    keep_checkpoints: int = 3  # the newest
    keep_every: int = 0  # checkpoints at multiples of this stay for good; 0: only the newest stay
    skip_limit: int = 10  # steps skipped in a row after which the run goes back to its last checkpoint
    spike_factor: float = 0.0  # a loss or gradient norm so many times the median of the last steps is skipped; 0: none
    collective_timeout: float = 600.0  # seconds after which a process that waits, for others or data, counts as hung
    deepspeed: dict[str, Any] = field(default_factory=dict)  # raw additions to DeepSpeed's configuration

    def __post_init__(self) -> None:
        counts = (
            "total_samples",
            "global_batch",
            "micro_batch",
            "keep_checkpoints",
            "skip_limit",
            "validation_samples",
        )
        for key in (*counts, "log_every", "checkpoint_every", "preview_every"):
            require(getattr(self, key) >= 1, f"training.{key}", "must be at least 1")
        for key in ("ema_snapshot_every", "keep_every", "validate_every", "profile_steps"):
            require(getattr(self, key) >= 0, f"training.{key}", "must not be negative")
        intervals = ("log_every", "checkpoint_every", "preview_every", "validate_every", "ema_snapshot_every")
        for key in ("total_samples", *intervals):
            value, batch = getattr(self, key), self.global_batch
            fit = max(batch, round(value / batch) * batch)
            require(
                value % batch == 0, f"training.{key}", f"{value} is no multiple of global_batch = {batch}; {fit} fits"
            )
        value, every = self.keep_every, self.checkpoint_every
        fit = max(every, round(value / every) * every)
        problem = f"{value} is no multiple of checkpoint_every = {every}; {fit} fits"
        require(value % every == 0, "training.keep_every", problem)
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
        fit = self.spike_factor == 0 or self.spike_factor > 1
        require(fit, "training.spike_factor", f"{self.spike_factor}: 0 fits, or more than 1")
        lengths = self.ema_lengths
        fit = len(set(lengths)) == len(lengths) > 0 and all(SHORTEST_EMA <= n <= LONGEST_EMA for n in lengths)
        numbers = f"one or more different numbers in {SHORTEST_EMA}..{LONGEST_EMA} fit"
        require(fit, "training.ema_lengths", f"{lengths}: {numbers}")


@dataclass
class ReadingConfig:
    """How a trainer reads its shards; only ``window`` changes what it learns from, and only in its order."""

    window: int = 64  # shards whose samples are shuffled together; see mmldm_scale/shards/shuffle.py
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

    trainable: str = ""  # what is trained; fixed by the command, so that a run's config.yaml says it
    run: str = MISSING  # the run's folder
    shards: list[str] = MISSING  # folders or URLs of finished sets; a single one may stand without brackets
    weights: list[float] = field(default_factory=list)  # how often each set's turn comes; none: by its samples
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        own = next(field.default for field in fields(self) if field.name == "trainable")
        require(self.trainable == own, "trainable", f"{self.trainable}, but this is `mmldm train {own}`")
        require(len(self.shards) > 0, "shards", "at least one set is needed")
        require(len(set(self.shards)) == len(self.shards), "shards", "a set is named twice; weights say how often")
        count, given = len(self.shards), len(self.weights)
        require(given in (0, count), "weights", f"{given} weights for {count} sets; one each fits, or none")
        require(all(0 < weight < math.inf for weight in self.weights), "weights", "must be positive")


@dataclass
class AdversarialConfig:
    """How a discriminator takes part in a training; what else it needs is the trainer's (``training``)."""

    weight: float = 0.1  # of the adversarial term in the model's loss (λ_gan); 0: no discriminator
    loss: Literal["log", "hinge"] = "log"  # the paper's Eq. 2, or the public code's
    after: int = 0  # samples before the discriminator begins to learn
    ramp: int = 0  # samples from there over which the term's weight rises to its full value
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.9)

    def __post_init__(self) -> None:
        require(min(self.weight, self.after, self.ramp) >= 0, "adversarial", "weight, after and ramp are at least 0")
        require(self.learning_rate > 0, "adversarial.learning_rate", "must be positive")


@dataclass
class ContrastiveConfig:
    """The contrastive loss for synchrony; see mmldm_scale/diffusion/contrastive.py."""

    weight: float = 0.0  # in the DiT's loss; 0: no such term. With it a step computes four times as much
    temperature: float = 0.1  # τ: errors that differ by much more count as told apart

    def __post_init__(self) -> None:
        require(self.weight >= 0, "contrastive.weight", "must not be negative")
        require(self.temperature > 0, "contrastive.temperature", "must be positive")
