"""What samples start from: the user's files and shard sets, listed, checked one by one, and cut as the model needs it.

A file is a video or, where sound alone is needed, a sound file; a sample of a shard set of clips is one clip. An input
is a window of a file, or a clip of a set. One that cannot be used is skipped, with its reason on stderr. Which inputs
are used is recorded once for all tasks of a job (:func:`choose_inputs`).
"""

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from tqdm import tqdm

from mmldm_scale.common.atomic_files import remembered_sha256, write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.common.modalities import Modality
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import NO_FRAMES, Clip, MediaError
from mmldm_scale.media.decode import (
    SOUND_SUFFIXES,
    SUFFIXES,
    has_picture,
    probe,
    read_clips,
    read_sounds,
    sound_seconds,
)
from mmldm_scale.media.find_files import find_media
from mmldm_scale.media.track import END_TOLERANCE
from mmldm_scale.sampling import input_sets

Part = Literal["first", "last", "all"]
PARTS: tuple[Part, ...] = get_args(Part)
Window = Part | float
SILENCE_DB = -60.0  # RMS level in dB of full scale below which a sound is silent, as in data preparation


@dataclass(frozen=True)
class Wanted:
    """What a task needs of each input.

    Attributes:
        needs: the modalities that it must have.
        media: its format and length.
        window: which part of a file: its beginning, its end, each whole window, or the one that begins at these
            seconds.
        seconds: ``media.seconds`` if that is longer than the model's clips, else None.
    """

    needs: tuple[Modality, ...]
    media: MediaConfig
    window: Window = "first"
    seconds: float | None = None


def parse_window(text: str) -> Window:
    """Return the value of ``--window``; raise UserError if it is none."""
    for name in PARTS:
        if text == name:
            return name
    try:
        start = float(text)
    except ValueError:
        start = -1.0
    if not 0 <= start < math.inf:
        raise UserError(f"--window {text}: must be first, last, all or a start in seconds, at least 0")
    return start


def list_inputs(path: Path, needs: Sequence[Modality]) -> list[Path]:
    """Return ``path`` itself if it is a file or a shard set, or the media files (by suffix) anywhere below it, sorted.

    Hidden ones, as :func:`find_media` says, are left out.

    Args:
        needs: ("audio",): videos and sound files are listed; else videos.

    Raises:
        UserError: it does not exist, or contains no such file.
    """
    if path.is_file() or input_sets.is_set(path):
        return [path]
    if not path.is_dir():
        raise UserError(f"--input {path}: no such file or folder")
    sound = tuple(needs) == ("audio",)
    suffixes = SUFFIXES | SOUND_SUFFIXES if sound else SUFFIXES
    files = find_media(path, suffixes)
    if not files:
        kinds = "no video and no sound file" if sound else "no video"
        raise UserError(f"--input {path}: contains {kinds}; allowed endings: {', '.join(sorted(suffixes))}")
    return files


@dataclass(frozen=True)
class Input:
    """A window of a file, or a clip of a shard set, that was looked at.

    Attributes:
        path: the file, or the folder of the set.
        sha256: of the file, or of the clip's members, at that time.
        reason: why it is not used; "": it is.
        start: of the window, in seconds.
        key: of the clip in its set; "": it is a file.
    """

    path: str
    sha256: str
    reason: str = ""
    start: float = 0.0
    key: str = ""

    def read(self, wanted: Wanted) -> Clip:
        """Return its clip; raise UserError if it is not as it was when it was looked at."""
        try:
            if self.key:
                digest, clip = input_sets.read(Path(self.path), self.key, wanted.media, wanted.needs)
                if digest == self.sha256:
                    return clip
            elif remembered_sha256(Path(self.path)) == self.sha256:
                return _first(read_windows(Path(self.path), [self.start], wanted))
            problem = "has another content"
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        except MediaError as error:
            problem = error.detail
        place = f"{self.path}: {self.key}" if self.key else self.path
        raise UserError(f"--input: {place}: changed since this job's first task looked at it: {problem}")


def check_sets(candidates: Sequence[Path], wanted: Wanted) -> None:
    """Raise UserError if a shard set among ``candidates`` has other clips than are ``wanted``."""
    for path in filter(input_sets.is_set, candidates):
        if isinstance(wanted.window, float):
            raise UserError(f"--window {wanted.window:g}: each clip of the set {path} is one window; leave it out")
        input_sets.check(path, wanted.media)


def set_fingerprint(candidates: Sequence[Path]) -> str | None:
    """Return the identity of the content of the shard set that ``candidates`` are; None if they are files."""
    return next((input_sets.fingerprint(path) for path in candidates if input_sets.is_set(path)), None)


def choose_inputs(
    file: Path, candidates: Sequence[Path], needed: int | None, wanted: Wanted, leases: Leases
) -> list[Input]:
    """Return the first ``needed`` usable inputs of ``candidates`` (fewer if there are no more; None: all).

    The first task of a job looks at the files and records what it finds in ``file``; all others, and later runs that
    need more, go on from there. So sample i starts from the same input in each. A record of other candidates or
    windows, left by a job that was refused later, is replaced. Each unusable one of several, files or
    windows, is reported in a line on stderr.

    Raises:
        UserError: nothing is usable, or ``file`` is no such record.
    """
    places = list(_places(candidates))
    with leases.writing(file):  # one task looks at the files, the others wait
        inputs = _read_record(file, wanted)
        looked_at = list(dict.fromkeys((part.path, part.key) for part in inputs))
        if looked_at != [(os.path.abspath(path), key) for path, key in places[: len(looked_at)]]:
            inputs, looked_at = [], []
        _extend(inputs, places[len(looked_at) :], len(places), needed, wanted)
        if len({(part.path, part.key) for part in inputs}) > len(looked_at):
            rows = [_as_row(part, wanted) for part in inputs]
            write_whole(file, json.dumps(rows, indent=1).encode() + b"\n")
    return _usable(inputs, len(places))[:needed]


def count_inputs(candidates: Sequence[Path], wanted: Wanted) -> int:
    """Return how many usable inputs ``candidates`` have, without a record; raise UserError if there are none."""
    places, inputs = list(_places(candidates)), list[Input]()
    _extend(inputs, places, len(places), None, wanted)
    return len(_usable(inputs, len(places)))


def _usable(inputs: Sequence[Input], count: int) -> list[Input]:
    """Return those of ``inputs``, of ``count`` places, that can be used; raise UserError if there are none."""
    usable = [part for part in inputs if not part.reason]
    if not usable:
        raise UserError(f"--input: none of {count} files can be used; the last: {inputs[-1].reason}")
    return usable


def _places(candidates: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yield the files of ``candidates``, and the clips of those that are shard sets by their keys."""
    for path in candidates:
        if input_sets.is_set(path):
            yield from ((path, key) for key in input_sets.keys(path))
        else:
            yield path, ""


def _extend(
    inputs: list[Input], places: Sequence[tuple[Path, str]], count: int, needed: int | None, wanted: Wanted
) -> None:
    """Look at ``places``, the rest of ``count``, until ``needed`` of ``inputs`` are usable; append what is found."""
    usable = sum(not part.reason for part in inputs)
    total = count if needed is None else min(needed, count)
    with tqdm(
        total=total, initial=min(usable, total), desc="checking inputs", unit=" files", leave=False, mininterval=1
    ) as progress:
        for path, key in places:
            if needed is not None and usable >= needed:
                return
            found = _look_at(path, key, wanted)
            if count > 1 or len(found) > 1:  # of one alone the error says it
                for part in (part for part in found if part.reason):
                    tqdm.write(f"skipped {part.reason}", file=sys.stderr)
            inputs += found
            usable += sum(not part.reason for part in found)
            progress.update()


def _look_at(path: Path, key: str, wanted: Wanted) -> list[Input]:
    """Return the inputs in the file ``path``, or the clip ``key`` of the set ``path``; at least one."""
    place, digest = os.path.abspath(path), ""
    try:
        if key:
            digest, clip = input_sets.read(path, key, wanted.media, wanted.needs)
            return [Input(place, digest, _silence(clip, f"{path}: {key}", wanted), key=key)]
        digest = remembered_sha256(path)
        starts = _starts(path, wanted)
        clips = zip(starts, read_windows(path, starts, wanted), strict=True)
        return [Input(place, digest, _problem(clip, path, start, wanted), start) for start, clip in clips]
    except OSError as error:
        return [Input(place, digest, f"{path}: {error.strerror} (unreadable)", key=key)]
    except MediaError as error:
        return [Input(place, digest, f"{error.detail} ({error.reason})", key=key)]


def _problem(clip: Clip | MediaError, path: Path, start: float, wanted: Wanted) -> str:
    """Return why the window of ``path`` at ``start`` cannot be used; "" if it can."""
    if isinstance(clip, MediaError):
        return f"{clip.detail} ({clip.reason})"
    return _silence(clip, f"{path} from {start:g} s on" if start else str(path), wanted)


def _silence(clip: Clip, name: str, wanted: Wanted) -> str:
    if "audio" not in wanted.needs:
        return ""
    level = 10 * math.log10(float(np.mean(np.square(clip.waveform, dtype=np.float64))) + 1e-20)
    return f"{name}: RMS level {level:.1f} dB, below {SILENCE_DB:g} dB (silent)" if level < SILENCE_DB else ""


def _starts(path: Path, wanted: Wanted) -> list[float]:
    """Return where the windows of ``path`` begin, in seconds; of a file that is too short, where one would."""
    if isinstance(wanted.window, float):
        return [wanted.window]
    if wanted.window == "first":
        return [0.0]
    seconds, length = _sound_alone(path, wanted) or probe(path).seconds, wanted.media.seconds
    if wanted.window == "last":
        return [math.floor(1000 * max(0.0, seconds - length)) / 1000]  # to the millisecond, as the records say it
    return [number * length for number in range(max(1, int((seconds + END_TOLERANCE) / length)))]


def _sound_alone(path: Path, wanted: Wanted) -> float:
    """Return the seconds of sound in ``path`` if it has no picture and none is needed; 0.0 if it is a video."""
    return sound_seconds(path) if wanted.needs == ("audio",) and not has_picture(path) else 0.0


def read_windows(path: Path, starts: Sequence[float], wanted: Wanted) -> Iterator[Clip | MediaError]:
    """Yield the window of ``path`` at each of ``starts`` (seconds), or why there is none.

    A sound file, which is enough where sound alone is needed, gives clips without frames.

    Raises:
        MediaError: the file cannot be read, or lacks what is needed.
    """
    if wanted.needs == ("audio",) and not has_picture(path):
        for sound in read_sounds(path, starts, wanted.media):
            yield sound if isinstance(sound, MediaError) else Clip(NO_FRAMES, sound)
    else:
        yield from read_clips(path, starts, wanted.media, need_sound="audio" in wanted.needs)


def _first(clips: Iterator[Clip | MediaError]) -> Clip:
    clip = next(clips)
    if isinstance(clip, MediaError):
        raise clip
    return clip


def _as_row(part: Input, wanted: Wanted) -> dict[str, Any]:
    """Return ``part`` as a row of the record; the window is named where it is not the first clip of a file."""
    row: dict[str, Any] = {"path": part.path, "sha256": part.sha256, "reason": part.reason}
    if part.key:
        row["key"] = part.key
    if wanted.window != "first":
        row |= {"window": wanted.window, "start": part.start}
    if wanted.seconds is not None:
        row["seconds"] = wanted.seconds
    return row


def _read_record(file: Path, wanted: Wanted) -> list[Input]:
    """Return the inputs that ``file`` records; [] if there is none, or their windows are others than ``wanted``."""
    if not file.exists():
        return []
    try:
        rows = json.loads(file.read_text())
        inputs = [
            Input(
                path=str(row["path"]),
                sha256=str(row["sha256"]),
                reason=str(row["reason"]),
                start=float(row.get("start", 0.0)),
                key=str(row.get("key", "")),
            )
            for row in rows
        ]
        windows = {(row.get("window", "first"), row.get("seconds")) for row in rows}
        return inputs if windows <= {(wanted.window, wanted.seconds)} else []
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{file}: not the record of a sampling job's inputs; give another --output") from None


def read_first_clip(video: Path, media: MediaConfig, need_sound: bool = True) -> Clip:
    """Return the clip at the beginning of ``video``, which may be silent unless ``need_sound``.

    Raises:
        MediaError: the video cannot be read or is too short.
    """
    return _first(read_clips(video, [0.0], media, need_sound))
