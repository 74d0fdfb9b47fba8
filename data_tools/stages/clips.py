"""Cuts videos into clip shards: plan, cut, drop silence, write.

``make_clips(source, output, preparation, workers, timeout)`` makes a clip set, resumes a stopped run, or helps
other processes that work on the same output. The unit of work is a part: some windows of one video in one
shard. Decoding processes cut parts, and this process writes the shards, each from its own parts alone, so the result is
the same however many processes there are.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from mmldm_scale.common.leases import Leases
from mmldm_scale.media.clip import Clip, MediaError
from mmldm_scale.media.decode import read_clips
from mmldm_scale.shards.clips import encode_clip
from mmldm_scale.shards.index import shard_name
from mmldm_scale.shards.manifest import PLAN, Manifest
from mmldm_scale.shards.writer import ShardWriter

from ..config import Preparation
from ..launching import process_pool
from ..launching.process_pool import batched, in_parts
from ..launching.progress import Progress
from ..sources import Source
from ..sources.source import media_files, without_paths
from ..sources.tar_members import notes
from .clip_plan import ClipPlan, Window, check_plan, make_plan
from .shard_set import begin, finish, missing_shards, read_plan

PART = 32  # windows of a video that are cut at once: more take more memory, fewer open the file more often


@dataclass(frozen=True)
class Cut:
    """The result of one window: a sample's members and meta, or the reason why it was dropped."""

    window: Window
    members: dict[str, bytes]
    meta: dict[str, Any]
    fault: MediaError | None = None


def make_clips(source: Source, output: Path, preparation: Preparation, workers: int, timeout: float) -> Manifest:
    """Make the clip set ``output`` from all videos of ``source``, or finish it; return its manifest.

    Args:
        workers: decoding processes; 0 decodes in this one, which a decoder that crashes or hangs ends or blocks. The
            result does not depend on it.
        timeout: seconds after which a decoder counts as hung and its windows are dropped.

    Raises:
        UserError: there are no videos; ``output`` holds something else or was begun from other videos or with another
            configuration; the disk is full.
    """
    read_plan(output, "clips")  # refuses another content before anything is probed
    with Leases(output) as leases:
        stored, new = begin(
            output, "clips", leases, lambda: asdict(make_plan(source, preparation, output, workers, timeout))
        )
        plan = ClipPlan.parse(stored, output / PLAN)
        if not new:
            check_plan(plan, source, preparation, output)
        windows = plan.windows()
        shards = batched(windows, preparation.samples_per_shard)
        cutter = _Cutter(source, preparation, plan.classes())
        with Progress(len(windows), "cutting", "clips") as bar:
            for numbers in missing_shards(output, [len(shard) for shard in shards], leases, bar):
                for number, cuts in _cut(cutter, shards, numbers, workers, timeout):
                    _write_shard(output, number, _ticking(cuts, bar), leases)
        return finish(
            output, len(shards), leases, plan.failed(), lambda indexes: _describe(plan, preparation, len(windows))
        )


def loudness(waveform: np.ndarray) -> float:
    """Return the RMS level of ``waveform`` (N,) in dB relative to full scale; -inf for digital silence."""
    power = float(np.mean(waveform.astype(np.float64) ** 2))
    return 10 * math.log10(power) if power > 0 else -math.inf


def _describe(plan: ClipPlan, preparation: Preparation, candidates: int) -> dict[str, Any]:
    rest = {key: value for key, value in plan.preparation.items() if key != "media"}
    return {
        "kind": "clips",
        "media": preparation.media,
        "classes": plan.classes(),
        "videos": len(plan.videos),
        "candidates": candidates,
        "preparation": rest,
    }


def _cut(
    cutter: "_Cutter", shards: list[list[Window]], numbers: Iterable[int], workers: int, timeout: float
) -> Iterator[tuple[int, Iterator[Cut]]]:
    """Yield each of the shards ``numbers``, drawn early, with the cuts of its windows, in order."""
    parts = {}  # of the shards that are handed out

    def parts_of(number: int) -> list[list[Window]]:
        parts[number] = _parts(shards[number])
        return parts[number]

    for number, results in in_parts(numbers, parts_of, lambda items: process_pool.map(cutter, items, workers, timeout)):
        finished = zip(parts.pop(number), results, strict=True)
        yield number, (cut for part, cuts in finished for cut in _cuts(part, cuts))


def _cuts(part: list[Window], result: list[Cut] | MediaError) -> list[Cut]:
    """Return the cuts of ``part``; all are faults if its decoding process crashed or hung."""
    return [Cut(window, {}, {}, result) for window in part] if isinstance(result, MediaError) else result


def _write_shard(output: Path, number: int, cuts: Iterable[Cut], leases: Leases) -> None:
    """Make shard ``number``, which is leased, of all its windows' ``cuts``, in their order."""
    name = shard_name(number)
    with ShardWriter(output, number) as writer:
        for cut in cuts:
            if cut.fault is None:
                writer.add(cut.window.key, cut.members, cut.meta)
            else:
                writer.drop(cut.window.key, cut.window.video.path, cut.fault.reason, cut.fault.detail)
        if leases.holds(name):  # else this process counted as dead, and another one makes the shard
            with leases.finishing(name):
                writer.commit()
    leases.release(name)


class _Cutter:
    """Cuts the windows of a part, all of one video."""

    def __init__(self, source: Source, preparation: Preparation, classes: list[str]) -> None:
        self._folder, self._sound_folder = source.folder, source.sound_folder
        self._preparation, self._classes = preparation, classes

    def __call__(self, windows: list[Window]) -> list[Cut]:
        """Return the cut of each of ``windows``."""
        media, video = self._preparation.media, windows[0].video
        starts = [window.seconds(media.fps) for window in windows]
        cuts: list[Cut] = []
        try:
            with media_files(self._folder, self._sound_folder, video.path, video.audio) as (file, sound):
                beside = notes(self._folder, video.path)
                number = self._preparation.source.audio_stream
                for clip in read_clips(file, starts, media, sound=sound, audio_stream=number):
                    if isinstance(clip, MediaError):
                        clip = MediaError(clip.reason, without_paths(clip.detail, file, sound))
                    cuts.append(self._cut(windows[len(cuts)], clip, beside))
        except MediaError as error:  # of the whole file: all windows that are not cut yet are lost
            cuts += [Cut(window, {}, {}, error) for window in windows[len(cuts) :]]
        return cuts

    def _cut(self, window: Window, clip: Clip | MediaError, beside: dict[str, Any]) -> Cut:
        """Return the cut of ``window``; ``beside`` are the video's own text and JSON, which its sample keeps."""
        preparation, video = self._preparation, window.video
        if isinstance(clip, MediaError):
            return Cut(window, {}, {}, clip)
        level = loudness(clip.waveform)
        if level < preparation.silence_db:
            text = f"RMS level {level:.1f} dB, below {preparation.silence_db:g} dB"
            return Cut(window, {}, {}, MediaError("silent", text))
        sample_rate = preparation.media.audio.sample_rate
        meta = {
            "path": video.path,
            "file_bytes": video.bytes,
            "start": window.seconds(preparation.media.fps),  # seconds on the clock of media.decode
            "frames": preparation.media.frames,
            "fps": preparation.media.fps,
            "sample_rate": sample_rate,
            "rms_db": round(level, 2),
            "origin": video.origin,
            "split": video.split,
            "labels": video.labels,
            "label": video.label,
            "class": None if video.label is None else self._classes.index(video.label),
            **beside,
        }
        return Cut(window, encode_clip(clip, sample_rate, preparation.jpeg_quality), meta)


def _parts(shard: list[Window]) -> list[list[Window]]:
    """Return the windows of one shard by video, those of a long one in several parts."""
    videos = (list(windows) for _, windows in groupby(shard, lambda window: window.video.key))
    return [part for windows in videos for part in batched(windows, PART)]


def _ticking(cuts: Iterable[Cut], bar: Progress) -> Iterator[Cut]:
    for cut in cuts:
        yield cut
        bar.update()
