"""What can be chosen about measuring and selecting; ``mmldm_scale.config.load`` puts it together from YAML."""

from dataclasses import dataclass, field

from mmldm_scale.config import SourceConfig
from mmldm_scale.errors import UserError


@dataclass
class Measurement:
    """``shard.py measure``: which candidates there are and how much of each is looked at."""

    source: SourceConfig = field(default_factory=SourceConfig)
    seconds: float = 60.0  # of a longer stretch, 10 s pieces spread over it that add up to about this are measured
    silence_db: float = -60.0  # dB of full scale (RMS of 50 ms) below which the sound counts as silent
    rows_per_part: int = 1000  # candidates in each file of the table: what a killed process loses at most

    def __post_init__(self) -> None:
        if self.seconds < 10:
            raise UserError(f"seconds: {self.seconds:g} is too little; 10 or more fits")
        if self.rows_per_part < 1:
            raise UserError(f"rows_per_part: {self.rows_per_part}: 1 or more fits")


@dataclass
class Limits:
    """The range that a measure has to lie in, both ends included; null leaves a side open."""

    min: float | None = None
    max: float | None = None

    def __post_init__(self) -> None:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise UserError(f"limits: min {self.min:g} lies above max {self.max:g}; no candidate could pass")


@dataclass
class HeldOut:
    """What is kept apart from training, always whole recordings (origins), in this order of precedence."""

    splits: list[str] = field(default_factory=list)  # of the source itself, such as eval
    share: float = 0.0  # of all origins, each by a hash of its own name: a new candidate moves no other
    count: int = 0  # instead of a share: origins by that hash until there are this many selected candidates

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"held_out.share: {self.share:g}: 0 to 1 fits")
        if self.count < 0:
            raise UserError(f"held_out.count: {self.count}: 0 or more fits")
        if self.share and self.count:
            raise UserError("held_out: share and count exclude each other; set one of them to 0")


@dataclass
class Selection:
    """``shard.py select``: limits, then near-duplicates, then the best by rank, then the held-out split."""

    limits: dict[str, Limits] = field(default_factory=dict)  # by measure; a measure that is null does not pass
    near_duplicate_bits: int | None = None  # hashes of 256 bits that differ in at most so many are one video; null: off
    rank: dict[str, float] = field(
        default_factory=dict
    )  # weight of each measure's percentile; negative: less is better
    top_per_label: int = 0  # kept if among the best so many of one of its labels; 0: all
    top: int = 0  # the best so many over all; 0: all
    held_out: HeldOut = field(default_factory=HeldOut)
    seed: int = 0  # of the held-out split, and of the order among equally ranked

    def __post_init__(self) -> None:
        for key in ("top_per_label", "top"):
            if getattr(self, key) < 0:
                raise UserError(f"{key}: {getattr(self, key)}: 0 (all) or more fits")
        if self.near_duplicate_bits is not None and not 0 <= self.near_duplicate_bits <= 64:
            raise UserError(f"near_duplicate_bits: {self.near_duplicate_bits}: 0 to 64 of 256 bits, or null, fits")
