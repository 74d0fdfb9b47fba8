"""Settings of the commands that prepare data: ``clips``, ``measure`` and ``select``.

``mmldm_scale.config.load(Preparation, files, overrides)`` composes each of them from YAML files and ``key=value``. The
settings of a source stand in the file of its kind (:mod:`.sources`), those of media in ``mmldm_scale.config``.
"""

from dataclasses import dataclass, field
from typing import Any

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import MediaConfig, require

from .sources import read_options


@dataclass
class Preparation:
    """Settings of ``shard.py clips`` and ``all``: where clips come from, how they are cut and kept in shards."""

    source: Any = field(default_factory=dict)  # settings of the source; source.kind decides which keys there are
    media: MediaConfig = field(default_factory=MediaConfig)
    stride: int = 16  # frames from one clip's start to the next in the same video; 1 takes every window
    max_clips_per_video: int = 0  # 0: no limit
    samples_per_shard: int = 256
    jpeg_quality: int = 95  # of the frames in clip shards
    silence_db: float = -60.0  # a clip whose RMS level lies below is dropped as silent

    def __post_init__(self) -> None:
        self.source = read_options(self.source)
        require(self.stride >= 1, "stride", "must be at least 1 frame")
        require(self.samples_per_shard >= 1, "samples_per_shard", "must be at least 1")
        require(1 <= self.jpeg_quality <= 100, "jpeg_quality", "must lie in 1..100")
        require(self.max_clips_per_video >= 0, "max_clips_per_video", "must be 0 (no limit) or more")


@dataclass
class MeasureConfig:
    """Settings of ``shard.py measure``: which candidates there are and how much of each is decoded."""

    source: Any = field(default_factory=dict)  # settings of the source; source.kind decides which keys there are
    seconds: float = 60.0  # of a longer stretch, 10 s pieces spread over it that add up to about this are measured
    silence_db: float = -60.0  # dB of full scale (RMS of 50 ms) below which the sound counts as silent
    rows_per_part: int = 1000  # candidates in each file of the table: what a killed process loses at most

    def __post_init__(self) -> None:
        self.source = read_options(self.source)
        if self.seconds < 10:
            raise UserError(f"seconds: {self.seconds:g}: must be at least 10")
        if self.rows_per_part < 1:
            raise UserError(f"rows_per_part: {self.rows_per_part}: must be at least 1")


@dataclass
class Limits:
    """The range that a measure must lie in, both ends included; null: no limit on that side."""

    min: float | None = None
    max: float | None = None

    def __post_init__(self) -> None:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise UserError(f"limits: min {self.min:g} is above max {self.max:g}")


@dataclass
class ValidationSet:
    """What is kept out of training, always whole recordings (origins), in this order of precedence."""

    splits: list[str] = field(default_factory=list)  # of the source itself, such as eval
    share: float = 0.0  # of all origins, each by a hash of its own name: a new candidate moves no other
    count: int = 0  # instead of a share: origins by that hash until there are this many selected candidates

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"held_out.share: {self.share:g}: must lie in 0..1")
        if self.count < 0:
            raise UserError(f"held_out.count: {self.count}: must be at least 0")
        if self.share and self.count:
            raise UserError("held_out: share and count exclude each other; set one of them to 0")


@dataclass
class Selection:
    """Settings of ``shard.py select``: limits, near-duplicates, the best by rank, the held-out split, in this order."""

    limits: dict[str, Limits] = field(default_factory=dict)  # by measure; a measure that is null does not pass
    near_duplicate_bits: int | None = None  # hashes of 256 bits that differ in at most so many are one video; null: off
    rank: dict[str, float] = field(
        default_factory=dict
    )  # weight of each measure's percentile; negative: less is better
    top_per_label: int = 0  # kept if among the best so many of one of its labels; 0: all
    top: int = 0  # the best so many over all; 0: all
    held_out: ValidationSet = field(default_factory=ValidationSet)
    seed: int = 0  # of the held-out split, and of the order among equally ranked

    def __post_init__(self) -> None:
        for key in ("top_per_label", "top"):
            if getattr(self, key) < 0:
                raise UserError(f"{key}: {getattr(self, key)}: must be 0 (all) or more")
        if self.near_duplicate_bits is not None and not 0 <= self.near_duplicate_bits <= 64:
            raise UserError(f"near_duplicate_bits: {self.near_duplicate_bits}: must be null or lie in 0..64 (bits)")
