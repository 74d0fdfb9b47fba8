"""The plan of a clip set: every window that may become a sample, in order, and every file without a window.

``make_plan(source, preparation, workers)`` probes all videos of a source; the plan is stored as ``plan.json`` and
alone decides what each shard holds: shard k takes what is not dropped of windows [k·n, (k+1)·n), n = samples_per_shard.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import restore
from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.decode import probe
from mmldm_scale.media.track import END_TOLERANCE
from mmldm_scale.shards.index import KEY
from mmldm_scale.shards.json_files import DamagedSet, check_types
from mmldm_scale.shards.manifest import PLAN, differences

from ..config import Preparation
from ..launching import process_pool
from ..launching.progress import Progress
from ..sources import Source
from ..sources.keys import unique_keys
from ..sources.source import entries, media_files
from ..sources.video import BY_NAME, Video


@dataclass(frozen=True)
class PlannedVideo:
    """One video and the first frames of its windows, counted at the set's frame rate from the beginning of its stretch.

    Without windows, ``reason`` says why.
    """

    path: str  # relative to the input folder
    audio: str  # of the file with its sound, relative to source.music; "": the sound is its own
    bytes: int
    labels: list[str]
    origin: str
    split: str
    key: str
    begin: float  # seconds into the file at which the stretch begins
    starts: list[int]
    reason: str = ""
    detail: str = ""

    @property
    def label(self) -> str | None:
        """The label that becomes the sample's class."""
        return self.labels[0] if self.labels else None


@dataclass(frozen=True)
class Window:
    """One candidate: frames [start, start + F) of the stretch of ``video``."""

    video: PlannedVideo
    start: int

    def seconds(self, fps: float) -> float:
        """Return when the window begins, in seconds on the clock of ``media.decode``."""
        return self.video.begin + self.start / fps

    @property
    def key(self) -> str:
        """The key of the sample that it becomes: unique, since the video's is."""
        return f"{self.video.key}-{self.start:06d}"


@dataclass(frozen=True)
class ClipPlan:
    """See the module's text; ``folder`` is where the videos were."""

    folder: str
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
            plan = cls(value["folder"], value["preparation"], [PlannedVideo(**video) for video in value["videos"]])
            check_types(plan)
            if not all(KEY.fullmatch(video.key) for video in plan.videos):
                raise ValueError("a key is not made of letters, digits, '_' and '-'")
            return plan
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedSet(f"{file}: no plan of a clip set: {type(error).__name__}: {str(error)[:200]}") from None


def make_plan(source: Source, preparation: Preparation, output: Path, workers: int, timeout: float) -> ClipPlan:
    """Probe every video of ``source`` and return the plan of the set ``output``; raise UserError if there are none."""
    videos = entries(source, output)
    keys = unique_keys([video.name for video in videos])
    probed = process_pool.map(_Prober(source, preparation), videos, workers, timeout)
    planned = []
    with Progress(len(videos), "probing", "videos") as bar:
        for video, key, seconds in zip(videos, keys, probed, strict=True):
            planned.append(_planned(video, key, seconds, preparation))
            bar.update()
    return ClipPlan(str(source.folder.resolve()), dataclasses.asdict(preparation), planned)


def check_plan(plan: ClipPlan, source: Source, preparation: Preparation, folder: Path) -> None:
    """Raise UserError if ``plan``, begun in ``folder``, is not what this source and this configuration would give."""
    begun_with = restore(Preparation, plan.preparation, str(folder / PLAN))
    changed = differences(dataclasses.asdict(begun_with), dataclasses.asdict(preparation), ("begun with", "now"))
    if changed:
        text = "; ".join(changed)
        raise UserError(f"{folder}: was begun with another configuration ({text}); use that, or another output folder")
    planned = [video for video in plan.videos if video.reason not in BY_NAME]
    then = {video.key: (video.path, video.audio, video.bytes, tuple(video.labels)) for video in planned}
    videos = [video for video in entries(source, folder) if not video.dropped_by_name]
    keys = unique_keys([video.name for video in videos])
    now = {key: (video.path, video.audio, video.bytes, video.labels) for key, video in zip(keys, videos, strict=True)}
    kinds = {
        "new": [path for key, (path, *_) in now.items() if key not in then],
        "gone": [path for key, (path, *_) in then.items() if key not in now],
        "changed": [path for key, (path, *rest) in now.items() if key in then and then[key] != (path, *rest)],
    }
    changes = [f"{len(paths)} {kind}, such as {paths[0]!r}" for kind, paths in kinds.items() if paths]
    if changes:
        raise UserError(
            f"{folder}: was begun with other input files than {source.folder} holds now: {'; '.join(changes)}; "
            "put the input back as it was, or give another output folder"
        )


def window_starts(seconds: float, preparation: Preparation) -> list[int]:
    """Return the first frames of the windows in ``seconds`` of video: every ``stride``, thinned evenly to the limit."""
    media, limit = preparation.media, preparation.max_clips_per_video
    last = math.floor((seconds - media.seconds + END_TOLERANCE) * media.fps + 1e-6)
    starts = list(range(0, last + 1, preparation.stride))
    if limit and len(starts) > limit:
        starts = [starts[i * len(starts) // limit] for i in range(limit)]
    return starts


def _planned(video: Video, key: str, seconds: float | MediaError, preparation: Preparation) -> PlannedVideo:
    """Return ``video`` with its windows, or with the reason why it has none.

    Args:
        seconds: how much of the file can be used, or why it cannot be.
    """
    begin, starts = video.start, list[int]()
    if isinstance(seconds, MediaError):
        fault = seconds
    else:
        begin, end = video.stretch(seconds)
        starts = window_starts(end - begin, preparation)
        fault = MediaError("too_short", f"{end - begin:.3f} s, a clip takes {preparation.media.seconds:g} s")
    return PlannedVideo(
        path=video.path,
        audio=video.audio,
        bytes=video.bytes,
        labels=list(video.labels),
        origin=video.origin,
        split=video.split,
        key=key,
        begin=begin,
        starts=starts,
        reason="" if starts else fault.reason,
        detail="" if starts else fault.detail,
    )


class _Prober:
    """Finds the usable seconds of a video, or why there are none."""

    def __init__(self, source: Source, preparation: Preparation) -> None:
        self._folder, self._sound_folder = source.folder, source.sound_folder
        self._audio_stream = preparation.source.audio_stream

    def __call__(self, video: Video) -> float | MediaError:
        """Return the seconds that the whole file of ``video`` has to use."""
        if video.reason:
            return MediaError(video.reason, video.detail)
        if video.seconds is not None:
            return video.seconds
        try:
            with media_files(self._folder, self._sound_folder, video.path, video.audio) as (file, sound):
                info = probe(file, sound, self._audio_stream)
        except MediaError as error:
            return error
        return info.seconds if info.has_audio else MediaError("no_audio_stream", "there is a picture but no sound")
