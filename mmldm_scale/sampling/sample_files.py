"""The files of a job's samples in its output folder: where they are, which are missing or damaged.

A sample ``svg_000007.mp4`` (``.wav`` of a model of sound alone) has beside it ``svg_000007.json``, which says what it
was made from. Those that started from a clip have it in ``inputs/``. The sample itself is written last, so a sample
that exists has the other two. With ``--lossless`` the samples are in a shard set as well (:mod:`.lossless`).
"""

import functools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmldm_scale.common.atomic_files import full_disk_reason
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import MediaConfig
from mmldm_scale.diffusion.tasks import TASKS, GenerationTask
from mmldm_scale.media.clip import Clip, MediaError
from mmldm_scale.media.clip_file import write_clip
from mmldm_scale.media.wav import decode_wav
from mmldm_scale.sampling.inputs import read_first_clip
from mmldm_scale.sampling.lossless import LosslessSet
from mmldm_scale.sampling.spectrograms import FOLDER, Spectrograms

SAMPLE = re.compile(rf"({'|'.join(TASKS)})_(\d{{6,}})\.(mp4|wav)")  # the name of a sample's file: task, index, ending
INPUTS = "inputs"  # folder, in the output folder, of the clips that samples started from


@dataclass(frozen=True)
class SampleFiles:
    """The files of a job's samples.

    Attributes:
        folder: the output folder.
        task: the samples' task.
        suffix: ".mp4", or ".wav" for samples of sound alone.
        media: the samples' format.
        input_media: the format of the inputs of a2v, v2a and continuations.
        lossless: the shard set of the samples; None: the job makes none.
    """

    folder: Path
    task: GenerationTask
    suffix: str
    media: MediaConfig
    input_media: MediaConfig
    lossless: LosslessSet | None = None

    @functools.cached_property
    def _spectrograms(self) -> Spectrograms:
        return Spectrograms(self.folder, self.media)

    @functools.cached_property
    def _input_spectrograms(self) -> Spectrograms:
        return Spectrograms(self.folder, self.input_media)

    def name(self, index: int) -> str:
        """Return the name of sample ``index``: that of its files, without a suffix."""
        return f"{self.task}_{index:06d}"

    def lease(self, block: range) -> str:
        """Return the name of the lease on ``block``."""
        return self.name(block.start)

    def file(self, index: int) -> Path:
        """Return the file of sample ``index``."""
        return self.folder / f"{self.name(index)}{self.suffix}"

    def record(self, index: int) -> Path:
        """Return the JSON beside sample ``index``."""
        return self.folder / f"{self.name(index)}.json"

    def missing(self, block: range) -> bool:
        """Return whether any sample of ``block``, or its lossless shard, is missing."""
        return any(not self.file(index).exists() for index in block) or self.shard_missing(block)

    def shard_missing(self, block: range) -> bool:
        """Return whether ``block`` has no lossless shard, but is to have one."""
        return self.lossless is not None and self.lossless.missing(block)

    def made(self, block: range) -> int:
        """Return how many samples of ``block`` there are, with all that belongs to them."""
        return 0 if self.shard_missing(block) else sum(self.file(index).exists() for index in block)

    def last_files(self, block: range) -> list[Path]:
        """Return for each missing sample of ``block`` the file that appears when it is made."""
        if self.lossless is not None and self.lossless.missing(block):
            return [self.lossless.index_file(block)] * len(block)
        return [self.file(index) for index in block if not self.file(index).exists()]

    def record_missing(self, blocks: Sequence[range]) -> bool:
        """Return whether a sample of ``blocks`` exists without its JSON."""
        return any(self.file(index).exists() and not self.record(index).exists() for block in blocks for index in block)

    def write_input(self, index: int, clip: Clip) -> None:
        """Write ``clip``, which sample ``index`` starts from: as MP4, or as WAV if it has no frames."""
        suffix = ".mp4" if len(clip.frames) else ".wav"
        self._write(self.folder / INPUTS / f"{self.name(index)}{suffix}", clip, self._input_spectrograms)

    def write(self, index: int, clip: Clip) -> None:
        """Write ``clip`` as sample ``index``."""
        self._write(self.file(index), clip, self._spectrograms)

    def _write(self, file: Path, clip: Clip, spectrograms: Spectrograms) -> None:
        try:
            spectrograms.picture(file).unlink(missing_ok=True)  # of a damaged file in its place
            write_clip(file, clip, self.media)
            spectrograms.write(file)
        except OSError as error:
            raise UserError(f"{file}: cannot be written: {full_disk_reason(error) or error.strerror}") from None

    def remove_damaged(self, blocks: Sequence[range]) -> None:
        """Remove those samples of ``blocks`` that do not decode whole, so that they are made again; print their names.

        So are samples whose inputs, which are made with them, do not.
        """
        for index in (index for block in blocks for index in block):
            file = self.file(index)
            parts = [(file, self.media)]
            if TASKS[self.task].needs:
                parts.append((self._input(index), self.input_media))
            damage = [text for part in parts if (text := _damage(*part))] if file.is_file() else []
            if damage:
                print(f"{file}: damaged, is made again: {damage[0]}", file=sys.stderr, flush=True)
                file.unlink(missing_ok=True)  # another job may have found the same

    def remove_leftovers(self, indices: range) -> None:
        """Remove what a killed job has left of samples ``indices``, which no other job makes, and of their inputs."""
        name = re.compile(rf"\.?{self.task}_(\d{{6,}})\.(?:mp4|wav|json|png)(\.\w+)?\.tmp")
        folders = ("", INPUTS, FOLDER, f"{FOLDER}/{INPUTS}")
        for file in (file for folder in folders for file in (self.folder / folder).glob("*.tmp")):
            match = name.fullmatch(file.name)
            if match and int(match[1]) in indices:
                file.unlink(missing_ok=True)

    def _input(self, index: int) -> Path:
        """Return the file of the input of sample ``index``, which is a WAV if it was a sound file."""
        file = self.folder / INPUTS / f"{self.name(index)}.mp4"
        sound = file.with_suffix(".wav")
        return sound if sound.exists() and not file.exists() else file


def _damage(file: Path, media: MediaConfig) -> str:
    """Return why the video or sound ``file`` does not decode whole; empty if it does."""
    try:
        if file.suffix == ".wav":
            found = len(decode_wav(file.read_bytes()))
            return "" if found == media.audio_samples else f"{file}: {found} samples of {media.audio_samples}"
        read_first_clip(file, media, need_sound=False)
    except MediaError as error:
        return error.detail
    except ValueError as error:
        return f"{file}: {error}"
    except OSError as error:
        return f"{file}: {error.strerror}"
    return ""
