"""The manifest of a shard set: contents, media format and origin of the set. It is written last.

``Manifest.read(folder, "latents")`` returns it, or raises an error that says in one line why the folder is not a
finished set of latents.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.modalities import Modality, by_modality
from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.config.media import Shape
from mmldm_scale.shards.index import FORMAT, ShardIndex, shard_name
from mmldm_scale.shards.json_files import DamagedSet, check_types, read_json, write_json

Kind = Literal["clips", "latents", "samples"]
MANIFEST, PLAN, DROPPED = "manifest.json", "plan.json", "dropped.jsonl"


@dataclass(frozen=True)
class ShardEntry:
    """The manifest's entry of one shard: name without suffix, number of samples, size and sha256 (hex) of the tar."""

    name: str
    samples: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, index: ShardIndex) -> "ShardEntry":
        """Return the entry of the shard that ``index`` describes."""
        return cls(index.name, len(index), index.bytes, index.sha256)


@dataclass
class Manifest:
    """A finished set. ``samples + dropped == candidates + failed_files`` always holds.

    Attributes:
        kind: "clips" (frames and waveform), "latents" (perceptual latents) or "samples" (frames and waveform that a
            model made, without loss).
        media: format of a clip: number, rate and size of frames; audio.
        classes: label names; a sample's "class" is an index into this list, or null.
        videos: number of media files found.
        failed_files: number of files without any candidate (unreadable, no sound, too short, …).
        candidates: number of windows considered.
        samples: number of windows that became samples.
        dropped: number of windows and failed files that did not; each is a row of ``dropped.jsonl``.
        reasons: number dropped for each reason, the most frequent first.
        shards: one entry per shard, in order.
        preparation: clips: the settings (source, stride, jpeg_quality, silence_db, …) of the cutting; samples: what
            all of them were made with (task, seed, sampler, …).
        source: latents: {"path", "manifest"}: folder of the clip set relative to this one, sha256 of its manifest.
        autoencoder: latents: {"path", "fingerprint"} of the weights that encoded them.
        audio_shape, video_shape: latents: (C, H, W) of the two latents; None for a modality that the set does not have.
        statistics: latents: {"audio": {"mean": [C], "std": [C]}, "video": {…}} of latents drawn from their posteriors.
    """

    kind: Kind
    media: MediaConfig
    classes: list[str]
    videos: int
    failed_files: int
    candidates: int
    samples: int
    dropped: int
    reasons: dict[str, int]
    shards: list[ShardEntry]
    preparation: dict[str, Any] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    autoencoder: dict[str, str] = field(default_factory=dict)
    audio_shape: tuple[int, int, int] | None = None
    video_shape: tuple[int, int, int] | None = None
    statistics: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[Modality, Shape]:
        """Shapes (C, H, W) of the latents of the set's modalities; empty for clips."""
        return by_modality(self.audio_shape, self.video_shape)

    def write(self, folder: Path) -> None:
        """Write ``folder/manifest.json`` atomically; the set is finished from then on."""
        write_json(folder / MANIFEST, {"format": FORMAT, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def read(cls, folder: str | Path, kind: Kind | None = None) -> "Manifest":
        """Return the manifest of the set in ``folder``.

        Raises:
            UserError: the folder is missing or contains no finished set, or the set is not of ``kind``, if given.
            DamagedSet: the manifest is damaged or inconsistent.
        """
        folder = Path(folder)
        if not folder.is_dir():
            problem = "is a file" if folder.exists() else "no such folder"
            raise UserError(f"{folder}: {problem}; expected a finished shard set (made by data_tools/shard.py)")
        if not (folder / MANIFEST).is_file():
            if (folder / PLAN).is_file():
                raise UserError(f"{folder}: unfinished shard set; run the command that began it again to finish it")
            raise UserError(f"{folder}: not a shard set (it has no {MANIFEST}); data_tools/shard.py makes one")
        manifest = cls._parse(folder / MANIFEST)
        if kind is not None and manifest.kind != kind:
            raise UserError(f"{folder}: contains {manifest.kind}, but {kind} are required here")
        return manifest

    @classmethod
    def _parse(cls, file: Path) -> "Manifest":
        value = read_json(file)
        if value.pop("format", None) != FORMAT:
            raise DamagedSet(f"{file}: not of format {FORMAT}, which this version reads")
        try:
            value["media"] = read_media(value["media"])
            value["shards"] = [ShardEntry(**entry) for entry in value["shards"]]
            for name in ("audio_shape", "video_shape"):
                value[name] = None if value[name] is None else tuple(map(int, value[name]))
            manifest = cls(**value)
            check_types(manifest)
            problem = manifest._problem()
        except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
            raise DamagedSet(f"{file}: not a manifest: {type(error).__name__}: {str(error)[:200]}") from None
        if problem:
            raise DamagedSet(f"{file}: {problem}")
        return manifest

    def _problem(self) -> str | None:
        if [entry.name for entry in self.shards] != [shard_name(number) for number in range(len(self.shards))]:
            return f"its shards are not named {shard_name(0)}, {shard_name(1)}, … in order"
        if self.samples != sum(entry.samples for entry in self.shards):
            return f"samples is {self.samples}, but the shards have {sum(entry.samples for entry in self.shards)}"
        if self.samples + self.dropped != self.candidates + self.failed_files:
            return (
                f"{self.samples} samples + {self.dropped} dropped do not equal "
                f"{self.candidates} candidates + {self.failed_files} failed files"
            )
        if self.kind == "latents" and self.samples and not self._describes_latents():
            return "its statistics do not have the channels of audio_shape and video_shape"
        return None

    def _describes_latents(self) -> bool:
        return self.shapes.keys() == self.statistics.keys() != set() and all(
            min(shape) > 0 and all(len(self.statistics[name].get(moment, ())) == shape[0] for moment in ("mean", "std"))
            for name, shape in self.shapes.items()
        )


def read_media(value: dict[str, Any]) -> MediaConfig:
    """Return the MediaConfig that ``dataclasses.asdict`` turned into ``value``; raise TypeError for unknown keys."""
    return MediaConfig(**{**value, "audio": AudioImageConfig(**value["audio"])})


def differences(
    left: dict[str, Any], right: dict[str, Any], sides: tuple[str, str] = ("left", "right"), prefix: str = ""
) -> list[str]:
    """Return the differing keys of two JSON objects as "key: left 1, right 2" (``sides``), nested keys with dots."""
    lines = []
    for key in dict.fromkeys([*left, *right]):
        value, other_value = left.get(key), right.get(key)
        if isinstance(value, dict) and isinstance(other_value, dict):
            lines += differences(value, other_value, sides, f"{prefix}{key}.")
        elif value != other_value:
            lines.append(f"{prefix}{key}: {sides[0]} {value!r}, {sides[1]} {other_value!r}")
    return lines
