"""The manifest of a shard set: what the set holds and where it comes from. It is written last.

``Manifest.read(folder, "latents")`` gives it back, or says in one line why the folder is no such set. ``autoencoder``,
``source`` and ``statistics`` are plain JSON objects, described at :class:`Manifest`.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.shards.index import FORMAT, ShardIndex, shard_name
from mmldm_scale.shards.json_files import DamagedSet, check_types, read_json, write_json

Kind = Literal["clips", "latents"]
MANIFEST, PLAN, DROPPED = "manifest.json", "plan.json", "dropped.jsonl"


@dataclass(frozen=True)
class ShardEntry:
    """One shard as the manifest knows it: name without suffix, samples, and its tar's size and sha256."""

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
        kind: "clips" (frames and waveform) or "latents" (perceptual latents).
        media: what a clip is: frames, rate, size, audio.
        classes: label names; a sample's "class" is an index into it, or null.
        videos: media files found.
        failed_files: those that gave no candidate at all (unreadable, silent track missing, too short).
        candidates: windows that might have become samples.
        samples, dropped: windows that did; windows and failed files that did not, each a row of ``dropped.jsonl``.
        reasons: how many were dropped for each reason, the most frequent first.
        shards: in order.
        preparation: clips: source, stride, jpeg_quality, silence_db, … they were cut with.
        source: latents: {"path", "manifest"}: the clip set's folder relative to this one, its manifest's sha256.
        autoencoder: latents: {"path", "fingerprint"} of the weights they were encoded with.
        audio_shape, video_shape: latents: (C, H, W) of the two latents.
        statistics: latents: {"audio": {"mean": [C], "std": [C]}, "video": {…}} of the latents as they are sampled.
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

    def write(self, folder: Path) -> None:
        """Write ``folder/manifest.json``, whole or not at all: from here on the set is finished."""
        write_json(folder / MANIFEST, {"format": FORMAT, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def read(cls, folder: str | Path, kind: Kind | None = None) -> "Manifest":
        """Return the manifest of the set in ``folder``.

        Raises:
            UserError: the folder is missing, holds no set or an unfinished one, or one of another ``kind`` than asked.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; a finished shard set (made by data_tools/shard.py) fits")
        if not (folder / MANIFEST).is_file():
            if (folder / PLAN).is_file():
                raise UserError(f"{folder}: an unfinished shard set; run the command that began it again to finish it")
            raise UserError(f"{folder}: no shard set (it has no {MANIFEST}); data_tools/shard.py makes one")
        manifest = cls._parse(folder / MANIFEST)
        if kind is not None and manifest.kind != kind:
            raise UserError(f"{folder}: holds {manifest.kind}, but {kind} are needed here")
        return manifest

    @classmethod
    def _parse(cls, file: Path) -> "Manifest":
        value = read_json(file)
        if value.pop("format", None) != FORMAT:
            raise DamagedSet(f"{file}: of another format than this version reads ({FORMAT})")
        try:
            value["media"] = read_media(value["media"])
            value["shards"] = [ShardEntry(**entry) for entry in value["shards"]]
            for name in ("audio_shape", "video_shape"):
                value[name] = None if value[name] is None else tuple(map(int, value[name]))
            manifest = cls(**value)
            check_types(manifest)
            problem = manifest._problem()
        except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
            raise DamagedSet(f"{file}: no manifest of ours: {type(error).__name__}: {str(error)[:200]}") from None
        if problem:
            raise DamagedSet(f"{file}: {problem}")
        return manifest

    def _problem(self) -> str | None:
        if [entry.name for entry in self.shards] != [shard_name(number) for number in range(len(self.shards))]:
            return f"the shards are not named {shard_name(0)}, {shard_name(1)}, … in order"
        if self.samples != sum(entry.samples for entry in self.shards):
            return f"{self.samples} samples do not add up to those of the shards"
        if self.samples + self.dropped != self.candidates + self.failed_files:
            return (
                f"{self.samples} samples + {self.dropped} dropped are not "
                f"{self.candidates} candidates + {self.failed_files} failed files"
            )
        if self.kind == "latents" and self.samples and not self._describes_latents():
            return "its statistics are not those of latents of its shapes"
        return None

    def _describes_latents(self) -> bool:
        shapes = {"audio": self.audio_shape, "video": self.video_shape}
        return all(
            shape is not None
            and min(shape) > 0
            and all(len(self.statistics.get(name, {}).get(moment, ())) == shape[0] for moment in ("mean", "std"))
            for name, shape in shapes.items()
        )


def read_media(value: dict[str, Any]) -> MediaConfig:
    """Return the MediaConfig that ``dataclasses.asdict`` made ``value`` of; raise TypeError if a key does not fit."""
    return MediaConfig(**{**value, "audio": AudioImageConfig(**value["audio"])})


def differences(
    here: dict[str, Any], there: dict[str, Any], sides: tuple[str, str] = ("here", "there"), prefix: str = ""
) -> list[str]:
    """Return what differs between two JSON objects as "key: here 1, there 2" (``sides``), nested keys dotted."""
    found = []
    for key in dict.fromkeys([*here, *there]):
        one, other = here.get(key), there.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, sides, f"{prefix}{key}.")
        elif one != other:
            found.append(f"{prefix}{key}: {sides[0]} {one!r}, {sides[1]} {other!r}")
    return found
