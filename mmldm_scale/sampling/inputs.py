"""The files that a2v and v2a start from: listed, checked one by one, and cut as the model needs them.

a2v takes videos with sound and sound files, v2a takes videos. The condition is the first clip of a file. A file without
a usable clip is skipped, with its reason on stderr. Which files are used is recorded once for all tasks of a job
(:func:`choose_inputs`).
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from mmldm_scale.common.atomic_files import sha256, write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.common.modalities import Modality
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import NO_FRAMES, Clip, MediaError
from mmldm_scale.media.decode import SOUND_SUFFIXES, SUFFIXES, has_picture, read_clips, read_sound


def list_inputs(path: Path, given: Modality) -> list[Path]:
    """Return ``path`` itself if it is a file, or the media files (by suffix) anywhere below it, sorted.

    Args:
        given: "audio": videos and sound files are listed; "video": videos.

    Raises:
        UserError: it does not exist, or contains no such file.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"--input {path}: no such file or folder")
    suffixes = SUFFIXES | SOUND_SUFFIXES if given == "audio" else SUFFIXES
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    if not files:
        kinds = "no video and no sound file" if given == "audio" else "no video"
        raise UserError(f"--input {path}: contains {kinds}; allowed endings: {', '.join(sorted(suffixes))}")
    return files


@dataclass(frozen=True)
class Input:
    """A file that was looked at: what it contained then, and why it is not used ("" if it is)."""

    path: str
    sha256: str
    reason: str = ""

    def read(self, media: MediaConfig, given: Modality) -> Clip:
        """Return its first clip; raise UserError if it is not as it was when it was looked at."""
        try:
            if sha256(Path(self.path)) == self.sha256:
                return read_input(Path(self.path), media, given)
            problem = "has another content"
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        except MediaError as error:
            problem = error.detail
        raise UserError(f"--input: {self.path}: changed since this job's first task looked at it: {problem}")


def choose_inputs(
    file: Path, candidates: list[Path], needed: int, media: MediaConfig, given: Modality, leases: Leases
) -> list[Input]:
    """Return the first ``needed`` of ``candidates`` that begin with a usable clip (fewer if there are no more).

    The first task of a job looks at the files and records what it finds in ``file``; all others, and later runs that
    need more, go on from there. So sample i starts from the same input in each. A record of other candidates, left by a
    job that was refused later, is replaced. Each unusable one of several is reported in a line on stderr.

    Args:
        given: what the task is given: "audio" needs sound, "video" needs a picture.

    Raises:
        UserError: no file is usable, or ``file`` is no such record.
    """
    with leases.writing(file):  # one task looks at the files, the others wait
        inputs = _read_record(file)
        if [os.path.abspath(part.path) for part in inputs] != [os.path.abspath(p) for p in candidates[: len(inputs)]]:
            inputs = []
        known = len(inputs)
        _extend(inputs, candidates, needed, media, given)
        if len(inputs) > known:
            write_whole(file, json.dumps([asdict(part) for part in inputs], indent=1).encode() + b"\n")
    usable = [part for part in inputs if not part.reason]
    if not usable:
        raise UserError(f"--input: none of {len(candidates)} files can be used; the last: {inputs[-1].reason}")
    return usable[:needed]


def _extend(inputs: list[Input], candidates: list[Path], needed: int, media: MediaConfig, given: Modality) -> None:
    """Look at more of ``candidates`` than ``inputs`` has, until ``needed`` are usable."""
    usable = sum(not part.reason for part in inputs)
    total = min(needed, len(candidates))
    with tqdm(
        total=total, initial=usable, desc="checking inputs", unit=" files", leave=False, mininterval=1
    ) as progress:
        for candidate in candidates[len(inputs) :]:
            if usable == needed:
                return
            inputs.append(_look_at(candidate, media, given))
            if inputs[-1].reason and len(candidates) > 1:  # of one alone the error says it
                tqdm.write(f"skipped {inputs[-1].reason}", file=sys.stderr)
            if not inputs[-1].reason:
                usable += 1
                progress.update()


def _look_at(file: Path, media: MediaConfig, given: Modality) -> Input:
    reason = digest = ""
    try:
        digest = sha256(file)
        read_input(file, media, given)
    except OSError as error:
        reason = f"{file}: {error.strerror} (unreadable)"
    except MediaError as error:
        reason = f"{error.detail} ({error.reason})"
    return Input(os.path.abspath(file), digest, reason)


def _read_record(file: Path) -> list[Input]:
    if not file.exists():
        return []
    try:
        parts = json.loads(file.read_text())
        return [Input(str(part["path"]), str(part["sha256"]), str(part["reason"])) for part in parts]
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{file}: not the record of a sampling job's inputs; give another --output") from None


def read_input(file: Path, media: MediaConfig, given: Modality) -> Clip:
    """Return the clip at the beginning of ``file``; of a sound file, which ``given`` = "audio" allows, without frames.

    Raises:
        MediaError: the file cannot be read, is too short, or lacks what is given.
    """
    if given == "audio" and not has_picture(file):
        return Clip(NO_FRAMES, read_sound(file, media))
    return read_first_clip(file, media, need_sound=given == "audio")


def read_first_clip(video: Path, media: MediaConfig, need_sound: bool = True) -> Clip:
    """Return the clip at the beginning of ``video``, which may be silent unless ``need_sound``.

    Raises:
        MediaError: the video cannot be read or is too short.
    """
    clip = next(read_clips(video, [0.0], media, need_sound))
    if isinstance(clip, MediaError):
        raise clip
    return clip
