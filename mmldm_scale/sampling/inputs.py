"""The videos that a2v and v2a start from: listed, checked one by one, and cut as the model needs them.

The condition is the first clip of a video. A video without a usable clip is skipped, with its reason on stderr.
"""

import sys
from pathlib import Path

from tqdm import tqdm

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import Clip, MediaError
from mmldm_scale.media.decode import SUFFIXES, read_clips


def list_videos(path: Path) -> list[Path]:
    """Return ``path`` itself if it is a file, or the videos (by suffix) anywhere below it, sorted.

    Raises:
        UserError: it does not exist, or contains no video.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"--input {path}: no such file or folder")
    videos = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not videos:
        raise UserError(f"--input {path}: contains no video; allowed endings: {', '.join(sorted(SUFFIXES))}")
    return videos


def select_usable(videos: list[Path], needed: int, media: MediaConfig, need_sound: bool = True) -> list[Path]:
    """Return the first ``needed`` of ``videos`` that begin with a usable clip (fewer if there are no more).

    Silent videos are usable unless ``need_sound``. Each unusable video is reported in one line on stderr.

    Raises:
        UserError: no video is usable.
    """
    usable: list[Path] = []
    faults: list[str] = []
    with tqdm(
        total=min(needed, len(videos)), desc="checking inputs", unit=" videos", leave=False, mininterval=1
    ) as progress:
        for video in videos:
            if len(usable) == needed:
                break
            try:
                read_first_clip(video, media, need_sound)
                usable.append(video)
                progress.update()
            except MediaError as error:
                faults.append(f"skipped ({error.reason}): {error.detail}")
                tqdm.write(faults[-1], file=sys.stderr)
    if not usable:
        raise UserError(f"--input: none of {len(videos)} videos can be used; the last one: {faults[-1]}")
    return usable


def read_first_clip(video: Path, media: MediaConfig, need_sound: bool = True) -> Clip:
    """Return the clip at the beginning of ``video``, which may be silent unless ``need_sound``.

    Raises:
        MediaError: the video cannot be read or is too short.
    """
    clip = next(read_clips(video, [0.0], media, need_sound))
    if isinstance(clip, MediaError):
        raise clip
    return clip
