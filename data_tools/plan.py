"""The work list of a clip set: every window that might become a sample, in order, and every file that gives none.

``make_plan(source, preparation, workers)`` probes all videos of a source; the plan is kept as ``plan.json`` and alone
decides what each shard holds: shard k takes whatever survives of windows [k·n, (k+1)·n), n = samples_per_shard.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from data_tools.progress import progress
from data_tools.sources import FolderSource, Video, unique_keys
from data_tools.workers import as_is, quiet
from mmldm_scale.config import Preparation
from mmldm_scale.errors import UserError
from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.decode import SLACK, probe
from mmldm_scale.shards.files import DamagedSet
from mmldm_scale.shards.manifest import differences


@dataclass(frozen=True)
class PlannedVideo:
    """One video and the first frames (at the set's frame rate) of its windows; without windows, ``reason`` says why."""

    path: str  # relative to the input folder
    bytes: int
    label: str | None
    key: str
    starts: list[int]
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Window:
    """One candidate: frames [start, start + F) of ``video``."""

    video: PlannedVideo
    start: int

    @property
    def key(self) -> str:
        """The key of the sample that it becomes: unique, since the video's is."""
        return f"{self.video.key}-{self.start:06d}"


@dataclass(frozen=True)
class ClipPlan:
    """See the module's text; ``source`` is the source's name."""

    source: str
    preparation: dict[str, Any]
    videos: list[PlannedVideo]

    def windows(self) -> list[Window]:
        """Return all candidates in their order."""
        return [Window(video, start) for video in self.videos for start in video.starts]

    def classes(self) -> list[str]:
        """Return the labels that occur among the candidates, sorted; a sample's class is an index into them."""
        return sorted({video.label for video in self.videos if video.starts and video.label is not None})

    def failed(self) -> list[dict[str, str]]:
        """Return a drop row for each file without candidates."""
        return [
            {"key": video.key, "path": video.path, "reason": video.reason, "detail": video.detail}
            for video in self.videos
            if not video.starts
        ]

    @classmethod
    def parse(cls, value: dict[str, Any], file: Path) -> "ClipPlan":
        """Return the plan that ``dataclasses.asdict`` made ``value`` of; raise DamagedSet if it is none."""
        try:
            return cls(value["source"], value["preparation"], [PlannedVideo(**video) for video in value["videos"]])
        except (KeyError, TypeError) as error:
            raise DamagedSet(f"{file}: no plan of ours: {type(error).__name__}: {str(error)[:200]}") from None


def make_plan(source: FolderSource, preparation: Preparation, workers: int) -> ClipPlan:
    """Probe every video of ``source`` and return the plan; raise UserError if there are no videos."""
    videos = source.videos()
    keys = unique_keys([video.path for video in videos])
    prober = DataLoader(
        _Prober(source.folder, videos),
        batch_size=None,
        num_workers=workers,
        collate_fn=as_is,
        worker_init_fn=quiet,
    )
    planned = []
    with progress(len(videos), "probing", "videos") as bar:
        for video, key, found in zip(videos, keys, prober, strict=True):
            planned.append(_planned(video, key, found, preparation))
            bar.update()
    return ClipPlan(source.name, dataclasses.asdict(preparation), planned)


def check_plan(plan: ClipPlan, source: FolderSource, preparation: Preparation, folder: Path) -> None:
    """Raise UserError if ``plan``, begun in ``folder``, is not what this source and this configuration would give."""
    begun = {"source": plan.source, **plan.preparation}
    changed = differences(begun, {"source": source.name, **dataclasses.asdict(preparation)}, ("begun with", "now"))
    if changed:
        text = "; ".join(changed)
        raise UserError(f"{folder}: was begun with another configuration ({text}); use that, or another output folder")
    then = {video.path: (video.bytes, video.label) for video in plan.videos}
    now = {video.path: (video.bytes, video.label) for video in source.videos()}
    kinds = {
        "new": [path for path in now if path not in then],
        "gone": [path for path in then if path not in now],
        "changed in size": [path for path in now if path in then and now[path] != then[path]],
    }
    found = [f"{len(paths)} {kind}, such as {paths[0]!r}" for kind, paths in kinds.items() if paths]
    if found:
        raise UserError(
            f"{folder}: was begun with other input files than {source.folder} holds now: {'; '.join(found)}; "
            "put the input back as it was, or give another output folder"
        )


def window_starts(seconds: float, preparation: Preparation) -> list[int]:
    """Return the first frames of the windows in ``seconds`` of video: every ``stride``, thinned evenly to the limit."""
    media, limit = preparation.media, preparation.max_clips_per_video
    last = math.floor((seconds - media.seconds + SLACK) * media.fps + 1e-6)
    starts = list(range(0, last + 1, preparation.stride))
    if limit and len(starts) > limit:
        starts = [starts[i * len(starts) // limit] for i in range(limit)]
    return starts


def _planned(video: Video, key: str, found: float | MediaError, preparation: Preparation) -> PlannedVideo:
    """Return ``video`` with its windows, or with why it has none."""
    starts: list[int] = []
    if not isinstance(found, MediaError):
        starts = window_starts(found, preparation)
        found = MediaError("too_short", f"{found:.3f} s, a clip takes {preparation.media.seconds:g} s")
    reason, detail = ("", "") if starts else (found.reason, found.detail)
    return PlannedVideo(video.path, video.bytes, video.label, key, starts, reason, detail)


class _Prober(Dataset):
    """Item i: the usable seconds of video i, or why there are none."""

    def __init__(self, folder: Path, videos: list[Video]) -> None:
        self._folder, self._videos = folder, videos

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, number: int) -> float | MediaError:
        file = self._folder / self._videos[number].path
        try:
            info = probe(file)
        except MediaError as error:
            return MediaError(error.reason, error.detail.removeprefix(f"{file}: "))
        return info.seconds if info.has_audio else MediaError("no_audio_stream", "there is a picture but no sound")
