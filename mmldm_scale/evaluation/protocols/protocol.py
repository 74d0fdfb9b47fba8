"""The keys of a protocol's file, as dataclasses; their comments are the documentation (docs/reference/evaluate.md)."""

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING

from mmldm_scale.config import require
from mmldm_scale.evaluation.metrics.metric import Direction

DistanceName = Literal[
    "frechet",
    "frechet_of_each",
    "polynomial_mmd",
    "gaussian_mmd",
    "inception_score",
    "kl_softmax",
    "kl_sigmoid",
    "mean",
]
SMALLEST = 4  # clips of a set: the floor needs two halves of at least 2


@dataclass
class SamplesConfig:
    """The samples that a figure is of."""

    count: int = 2048  # number of samples; of a larger set those spread evenly over it
    exact: bool = True  # false: all samples of the set, at least count
    repeats: bool = True  # false: refuse sets in which samples are copies of each other

    def __post_init__(self) -> None:
        require(self.count >= SMALLEST, "samples.count", f"{self.count}: must be at least {SMALLEST}")


@dataclass
class ReferenceConfig:
    """The clips that samples are compared with."""

    split: str = MISSING  # which clips they have to be, for reports: "training set", "held-out clips"; not checked
    count: int = 0  # number of reference clips, spread evenly over the set; 0: as many as samples
    paired: bool = False  # true: the clip of each sample's name is its reference

    def __post_init__(self) -> None:
        valid = self.count == 0 or self.count >= SMALLEST
        require(valid, "reference.count", f"{self.count}: must be 0 or at least {SMALLEST}")
        require(not (self.paired and self.count), "reference.count", f"{self.count}: must be 0 with paired: true")


@dataclass
class FramesConfig:
    """How frames reach the networks."""

    count: int = 16  # frames of a clip, from its beginning; 0: all
    rate: float = 0.0  # [frames per second] frames are picked at this rate; 0: the clip's own rate
    size: int = 0  # [pixels] frames become squares of this side before a network resizes them; 0: they stay
    # how: letterbox resizes the longer side and adds black bars, crop resizes the shorter one and cuts the middle
    fit: Literal["letterbox", "crop"] = "letterbox"
    filter: Literal["bilinear", "bicubic"] = "bicubic"  # filter of this resizing
    antialias: bool = True  # whether that filter averages all pixels when it reduces

    def __post_init__(self) -> None:
        for key in ("count", "rate", "size"):
            value = getattr(self, key)
            require(0 <= value < math.inf, f"frames.{key}", f"{value:g}: must be at least 0")


@dataclass
class SoundConfig:
    """How sound reaches the networks, which resample it themselves (``sample_rate`` of their options)."""

    seconds: float = 0.0  # [seconds] from the clip's beginning; 0: all
    # lossless: sound as it is in the set; aac: AAC of 128 kbit/s, as in an mp4; videos have a lossy track already, and
    # are not encoded again
    track: Literal["lossless", "aac"] = "lossless"

    def __post_init__(self) -> None:
        require(0 <= self.seconds < math.inf, "sound.seconds", f"{self.seconds:g}: must be at least 0")


@dataclass
class MetricConfig:
    """A figure."""

    title: str = ""  # how reports write it; empty: its key
    distance: DistanceName = MISSING  # how it is computed from features
    extractor: str = MISSING  # the network that makes the features
    options: dict[str, Any] = field(default_factory=dict)  # of the network, such as output: logits
    scale: float = 1.0  # the figure is multiplied by this
    covariance: Literal["unbiased", "biased"] = "unbiased"  # frechet: divided by N − 1, or by N
    splits: int = 10  # inception_score: number of parts whose mean it is
    column: int = 0  # mean: which of the network's outputs, from 0
    better: Direction = "higher"  # mean: which direction is better

    def __post_init__(self) -> None:
        require(math.isfinite(self.scale) and self.scale > 0, "scale", f"{self.scale:g}: must be greater than 0")
        require(self.splits >= 1, "splits", f"{self.splits}: must be at least 1")
        require(self.column >= 0, "column", f"{self.column}: must be at least 0")


@dataclass
class PublishedRow:
    """A row of a published table, which reports print beside ours."""

    label: str = MISSING  # the system
    data: str = MISSING  # the data set
    values: dict[str, float] = field(default_factory=dict)  # by the key of the metric
    source: str = MISSING  # where it is published


@dataclass
class Protocol:
    """Every choice behind the figures of a report."""

    title: str = ""  # in a few words
    about: str = ""  # what a reader has to know
    samples: SamplesConfig = field(default_factory=SamplesConfig)  # the samples
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)  # what they are compared with
    frames: FramesConfig = field(default_factory=FramesConfig)  # how frames reach the networks
    sound: SoundConfig = field(default_factory=SoundConfig)  # how sound reaches the networks
    batch_size: int = 8  # clips that a network sees together; counts where it computes statistics of a batch
    metrics: dict[str, MetricConfig] = field(default_factory=dict)  # the figures, by their keys in reports
    resamples: int = 200  # resampled sets behind an interval
    level: float = 0.95  # [0..1] share of the resampled figures that lie in the interval
    floor_repeats: int = 10  # how often the reference is halved for the floor
    seed: int = 0  # of the resampling and the halving
    published: list[PublishedRow] = field(default_factory=list)  # rows measured under this protocol

    def __post_init__(self) -> None:
        require(bool(self.metrics), "metrics", "must name at least one metric")
        for name, metric in self.metrics.items():
            valid = re.fullmatch(r"[a-z][a-z0-9_]*", name) is not None
            require(valid, f"metrics.{name}", "must be small letters, digits and _")
            needs_pairs = metric.distance.startswith("kl_") and not self.reference.paired
            require(not needs_pairs, f"metrics.{name}.distance", f"{metric.distance}: needs reference.paired: true")
        for key in ("batch_size", "floor_repeats"):
            require(getattr(self, key) >= 1, key, f"{getattr(self, key)}: must be at least 1")
        require(self.resamples >= 20, "resamples", f"{self.resamples}: must be at least 20")
        require(0 < self.level < 1, "level", f"{self.level:g}: must lie between 0 and 1")
        require(0 <= self.seed < 2**63, "seed", f"{self.seed}: must lie in 0..2⁶³ − 1")
        for i, row in enumerate(self.published):
            unknown = sorted(set(row.values) - set(self.metrics))
            require(not unknown, f"published[{i}].values", f"{', '.join(unknown)}: must be keys of metrics")
