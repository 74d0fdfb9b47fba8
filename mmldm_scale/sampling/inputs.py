"""The videos that a2v and v2a start from: listed, checked one by one, and cut as the model needs them.

The condition is the first clip of a video. A video without a usable clip is skipped, with its reason on stderr. Which
videos are used is recorded once for all tasks of a job (:func:`choose_inputs`).
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from mmldm_scale.common.atomic_files import sha256, write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import Clip, MediaError
from mmldm_scale.media.decode import SUFFIXES, read_clips

POLL_SECONDS = 0.5  # between two looks whether another task has finished with the inputs


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


@dataclass(frozen=True)
class Input:
    """A video that was looked at: what it contained then, and why it is not used ("" if it is)."""

    path: str
    sha256: str
    reason: str = ""

    def read(self, media: MediaConfig, need_sound: bool) -> Clip:
        """Return its first clip; raise UserError if it is not as it was when it was looked at."""
        try:
            if sha256(Path(self.path)) == self.sha256:
                return read_first_clip(Path(self.path), media, need_sound)
            problem = "has another content"
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        except MediaError as error:
            problem = error.detail
        raise UserError(f"--input: {self.path}: changed since this job's first task looked at it: {problem}")


def choose_inputs(
    file: Path, videos: list[Path], needed: int, media: MediaConfig, need_sound: bool, leases: Leases
) -> list[Input]:
    """Return the first ``needed`` of ``videos`` that begin with a usable clip (fewer if there are no more).

    The first task of a job looks at the videos and records what it finds in ``file``; all others, and later runs that
    need more, go on from there. So sample i starts from the same input in each. Silent videos are usable unless
    ``need_sound``. Each unusable video is reported in one line on stderr.

    Raises:
        UserError: no video is usable, or ``file`` is no such record.
    """
    while not leases.take(file.name):
        time.sleep(POLL_SECONDS)  # another task is looking at the videos
    try:
        inputs = _read_record(file)
        known = len(inputs)
        _extend(inputs, videos, needed, media, need_sound)
        if len(inputs) > known:
            write_whole(file, json.dumps([asdict(part) for part in inputs], indent=1).encode() + b"\n")
    finally:
        leases.release(file.name)
    usable = [part for part in inputs if not part.reason]
    if not usable:
        raise UserError(f"--input: none of {len(videos)} videos can be used; the last one: {inputs[-1].reason}")
    return usable[:needed]


def _extend(inputs: list[Input], videos: list[Path], needed: int, media: MediaConfig, need_sound: bool) -> None:
    """Look at more of ``videos`` than ``inputs`` has, until ``needed`` are usable."""
    usable = sum(not part.reason for part in inputs)
    total = min(needed, len(videos))
    with tqdm(
        total=total, initial=usable, desc="checking inputs", unit=" videos", leave=False, mininterval=1
    ) as progress:
        for video in videos[len(inputs) :]:
            if usable == needed:
                return
            inputs.append(_look_at(video, media, need_sound))
            if inputs[-1].reason:
                tqdm.write(f"skipped {inputs[-1].reason}", file=sys.stderr)
            else:
                usable += 1
                progress.update()


def _look_at(video: Path, media: MediaConfig, need_sound: bool) -> Input:
    reason = digest = ""
    try:
        digest = sha256(video)
        read_first_clip(video, media, need_sound)
    except OSError as error:
        reason = f"(unreadable): {video}: {error.strerror}"
    except MediaError as error:
        reason = f"({error.reason}): {error.detail}"
    return Input(str(video), digest, reason)


def _read_record(file: Path) -> list[Input]:
    if not file.exists():
        return []
    try:
        parts = json.loads(file.read_text())
        return [Input(str(part["path"]), str(part["sha256"]), str(part["reason"])) for part in parts]
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{file}: not the record of a sampling job's inputs; give another --output") from None


def read_first_clip(video: Path, media: MediaConfig, need_sound: bool = True) -> Clip:
    """Return the clip at the beginning of ``video``, which may be silent unless ``need_sound``.

    Raises:
        MediaError: the video cannot be read or is too short.
    """
    clip = next(read_clips(video, [0.0], media, need_sound))
    if isinstance(clip, MediaError):
        raise clip
    return clip
