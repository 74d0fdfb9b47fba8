"""From videos to clip shards: plan, cut, filter out silence, write.

``make_clips(source, output, preparation, workers)`` does it all, or carries on where a stopped run left off. The unit
of work is a part: some windows of one video in one shard. Decoding processes cut parts, and this process writes the
shards, each from its own parts alone, so the result is the same however many processes there are.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from data_tools.build import finish, missing_shards, read_plan, write_plan
from data_tools.plan import ClipPlan, Window, check_plan, make_plan
from data_tools.progress import progress
from data_tools.sources import Source
from data_tools.workers import as_is, batched, quiet
from mmldm_scale.config import Preparation
from mmldm_scale.media.clip import Clip, MediaError
from mmldm_scale.media.decode import read_clips
from mmldm_scale.shards.clips import encode_clip
from mmldm_scale.shards.index import ShardIndex
from mmldm_scale.shards.manifest import PLAN, Manifest
from mmldm_scale.shards.writer import ShardWriter

PART = 32  # windows of a video cut at once: little enough for memory and progress, enough to be worth opening the file


@dataclass(frozen=True)
class Cut:
    """What became of one window: a sample's members and meta, or the reason why it is none."""

    window: Window
    members: dict[str, bytes]
    meta: dict[str, Any]
    fault: MediaError | None = None


def make_clips(source: Source, output: Path, preparation: Preparation, workers: int) -> Manifest:
    """Make the clip set ``output`` from all videos of ``source``, or finish it; return its manifest.

    Args:
        workers: decoding processes; 0 decodes in this one. The result does not depend on it.

    Raises:
        UserError: there are no videos; ``output`` holds something else or was begun from other videos or with another
            configuration; the disk is full.
    """
    stored = read_plan(output, "clips")
    if stored is None:
        plan = make_plan(source, preparation, workers)
        write_plan(output, "clips", asdict(plan))
    else:
        plan = ClipPlan.parse(stored, output / PLAN)
        check_plan(plan, source, preparation, output)
    windows = plan.windows()
    shards = batched(windows, preparation.samples_per_shard)
    missing = missing_shards(output, len(shards))
    parts = [_parts(shards[number]) for number in missing]
    cutter = DataLoader(
        _Cutter(source.folder, [part for shard in parts for part in shard], preparation, plan.classes()),
        batch_size=None,
        num_workers=workers if missing else 0,
        collate_fn=as_is,
        worker_init_fn=quiet,
    )
    left = sum(len(shards[number]) for number in missing)
    with progress(len(windows), "cutting", "clips", done=len(windows) - left) as bar:
        cuts = iter(cutter)
        for number, shard in zip(missing, parts, strict=True):
            _write_shard(output, number, _ticking((cut for part in islice(cuts, len(shard)) for cut in part), bar))

    def describe(indexes: list[ShardIndex]) -> dict[str, Any]:
        rest = {key: value for key, value in plan.preparation.items() if key != "media"}
        return {
            "kind": "clips",
            "media": preparation.media,
            "classes": plan.classes(),
            "videos": len(plan.videos),
            "candidates": len(windows),
            "preparation": rest,
        }

    return finish(output, len(shards), plan.failed(), describe)


def loudness(waveform: np.ndarray) -> float:
    """Return the RMS level of ``waveform`` (N,) in dB relative to full scale; -inf for digital silence."""
    power = float(np.mean(waveform.astype(np.float64) ** 2))
    return 10 * math.log10(power) if power > 0 else -math.inf


def _write_shard(output: Path, number: int, cuts: Iterable[Cut]) -> None:
    """Make shard ``number`` of all its windows' ``cuts``, in their order."""
    with ShardWriter(output, number) as writer:
        for cut in cuts:
            if cut.fault is None:
                writer.add(cut.window.key, cut.members, cut.meta)
            else:
                writer.drop(cut.window.key, cut.window.video.path, cut.fault.reason, cut.fault.detail)
        writer.commit()


class _Cutter(Dataset):
    """Item i: what became of the windows of part i, all of one video."""

    def __init__(self, folder: Path, parts: list[list[Window]], preparation: Preparation, classes: list[str]) -> None:
        self._folder, self._parts, self._preparation, self._classes = folder, parts, preparation, classes

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: int) -> list[Cut]:
        windows, media = self._parts[number], self._preparation.media
        file = self._folder / windows[0].video.path
        cuts: list[Cut] = []
        try:
            for clip in read_clips(file, [window.seconds(media.fps) for window in windows], media):
                cuts.append(self._cut(file, windows[len(cuts)], clip))
        except MediaError as error:  # the whole file: whatever window it has not come to is lost
            cuts += [self._cut(file, window, error) for window in windows[len(cuts) :]]
        return cuts

    def _cut(self, file: Path, window: Window, clip: Clip | MediaError) -> Cut:
        preparation, video = self._preparation, window.video
        if isinstance(clip, MediaError):
            return Cut(window, {}, {}, MediaError(clip.reason, clip.detail.removeprefix(f"{file}: ")))
        level = loudness(clip.waveform)
        if level < preparation.silence_db:
            text = f"RMS level {level:.1f} dB, below {preparation.silence_db:g} dB"
            return Cut(window, {}, {}, MediaError("silent", text))
        sample_rate = preparation.media.audio.sample_rate
        meta = {
            "path": video.path,
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
        }
        return Cut(window, encode_clip(clip, sample_rate, preparation.jpeg_quality), meta)


def _parts(shard: list[Window]) -> list[list[Window]]:
    """Return the windows of one shard by video, those of a long one in several parts."""
    videos = (list(windows) for _, windows in groupby(shard, lambda window: window.video.key))
    return [part for windows in videos for part in batched(windows, PART)]


def _ticking(cuts: Iterable[Cut], bar: Any) -> Iterator[Cut]:
    for cut in cuts:
        yield cut
        bar.update()
