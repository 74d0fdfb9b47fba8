"""What can be chosen about preparing data: sources, cutting, measuring, selecting.

``mmldm_scale.config.load(Preparation, files, overrides)`` puts each together from YAML and ``key=value``; comments give
units and what a value means. The media settings are the library's own.
"""

from dataclasses import dataclass, field
from typing import Literal

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import MediaConfig, require


@dataclass
class SourceConfig:
    """``data_tools/shard.py``: what kind of collection the videos are, and the lists that come with it."""

    kind: Literal["folder", "audioset", "landscape", "aist"] = "folder"
    include: list[str] = field(default_factory=list)  # AudioSet: only what has one of these labels or one below them
    exclude: list[str] = field(default_factory=list)  # AudioSet: nothing that has one of these labels or one below them
    ontology: str = ""  # AudioSet: ontology.json; "": the one beside the first list, if any
    label_names: str = ""  # AudioSet: class_labels_indices.csv; "": as above
    label: Literal["genre", "situation", "camera", "dancer", "music", "choreography"] = "genre"  # AIST++: the class
    music: str = ""  # AIST++'s original videos, and lists with a column "audio": the folder of the sound files
    split: str = ""  # of all videos; "": what folders, names of segment lists and columns say
    list: str = ""  # a list of segments (AudioSet; several with "," between), clips (folder) or classes (Landscape)

    def __post_init__(self) -> None:
        if self.kind == "folder" and self.list:
            return  # a selection of any source, perhaps with the file that configured its source
        meant_for = {
            "include": ("audioset",),
            "exclude": ("audioset",),
            "ontology": ("audioset",),
            "label_names": ("audioset",),
            "music": ("aist",),
            "list": ("audioset", "landscape"),
        }
        for key, kinds in meant_for.items():
            fits = self.kind in kinds or not getattr(self, key)
            require(fits, f"source.{key}", f"only for source.kind={', '.join(kinds)}, not for {self.kind}")


@dataclass
class Preparation:
    """``data_tools/shard.py``: where clips come from, how they are cut and kept in shards."""

    source: SourceConfig = field(default_factory=SourceConfig)
    media: MediaConfig = field(default_factory=MediaConfig)
    stride: int = 16  # frames from one clip's start to the next in the same video; 1 takes every window
    max_clips_per_video: int = 0  # 0: no limit
    samples_per_shard: int = 256
    jpeg_quality: int = 95  # of the frames in clip shards
    silence_db: float = -60.0  # a clip whose RMS level lies below is dropped as silent

    def __post_init__(self) -> None:
        require(self.stride >= 1, "stride", "must be at least 1 frame")
        require(self.samples_per_shard >= 1, "samples_per_shard", "must be at least 1")
        require(1 <= self.jpeg_quality <= 100, "jpeg_quality", "must lie in 1..100")
        require(self.max_clips_per_video >= 0, "max_clips_per_video", "must be 0 (no limit) or more")


@dataclass
class MeasureConfig:
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
class ValidationSet:
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
    held_out: ValidationSet = field(default_factory=ValidationSet)
    seed: int = 0  # of the held-out split, and of the order among equally ranked

    def __post_init__(self) -> None:
        for key in ("top_per_label", "top"):
            if getattr(self, key) < 0:
                raise UserError(f"{key}: {getattr(self, key)}: 0 (all) or more fits")
        if self.near_duplicate_bits is not None and not 0 <= self.near_duplicate_bits <= 64:
            raise UserError(f"near_duplicate_bits: {self.near_duplicate_bits}: 0 to 64 of 256 bits, or null, fits")
