"""Follows the previews in a run's TensorBoard files while a training writes them.

    reader = MediaReader(run)
    for preview in reader.new(before=samples_seen):
        for medium in preview.media(folder):
            …                                      # PNG, MP4 or WAV file

TensorBoard shows a video as a silent GIF, and the sound apart. A video and its sound are put together to one MP4: the
sound of "NAME/video" is "NAME/sound", that of "NAME/restored" is "NAME/sound_restored".
"""

import io
import math
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary

from mmldm_scale.media.encode import AAC_RATES, write_video

GIF = b"GIF8"  # first bytes of a GIF


@dataclass(frozen=True)
class Medium:
    """A picture, a video or a sound of a preview.

    Attributes:
        file: PNG; MP4, with its sound if it has one; or WAV.
        gif: of a video: the same, silent, for those that play no MP4.
        sound: of a video: its sound as WAV; None: it has none.
    """

    samples_seen: int
    tag: str
    kind: Literal["picture", "video", "sound"]
    file: Path
    gif: Path | None = None
    sound: Path | None = None


@dataclass(frozen=True)
class LoggedPreview:
    """What was shown at ``samples_seen``, as TensorBoard has it."""

    samples_seen: int
    values: list[Summary.Value]

    def media(self, folder: Path) -> Iterator[Medium]:
        """Yield the media, each in files in ``folder`` that the next one replaces."""
        sounds = {value.tag: value.audio.encoded_audio_string for value in self.values if value.HasField("audio")}
        images = {value.tag: value.image.encoded_image_string for value in self.values if value.HasField("image")}
        picture, sound = folder / "picture.png", folder / "sound.wav"
        for tag, data in images.items():
            if data.startswith(GIF):
                yield self._video(folder, tag, data, sounds.pop(_sound_tag(tag), None))
            else:
                picture.write_bytes(data)
                yield Medium(self.samples_seen, tag, "picture", picture)
        for tag, data in sounds.items():
            sound.write_bytes(data)
            yield Medium(self.samples_seen, tag, "sound", sound)

    def _video(self, folder: Path, tag: str, data: bytes, wav: bytes | None) -> Medium:
        video, gif, sound = folder / "video.mp4", folder / "video.gif", folder / "sound.wav"
        gif.write_bytes(data)
        if wav:
            sound.write_bytes(wav)
        _write_video(video, data, wav)
        return Medium(self.samples_seen, tag, "video", video, gif, sound if wav else None)


class MediaReader:
    """Reads the previews of the run folder ``run``, which need not exist yet."""

    def __init__(self, run: Path) -> None:
        self._folder = run / "tensorboard"
        self._files: dict[Path, _EventReader] = {}

    def new(self, before: float) -> Iterator[LoggedPreview]:
        """Yield the complete previews that were not returned before.

        Each start of a training begins a file. What earlier files hold beyond the checkpoint from which it resumed is
        left out, as TensorBoard does.

        Args:
            before: samples seen; previews up to there are complete. Others are if something follows them.
        """
        files = sorted(self._folder.glob("events.out.tfevents.*"))
        for file in files:
            self._files.setdefault(file, _EventReader(file))
        starts = [_start(file) for file in files]
        for number, file in enumerate(files):
            valid_before = min(starts[number + 1 :], default=math.inf)
            for preview in self._files[file].new(before):
                if preview.samples_seen < valid_before:
                    yield preview


class _EventReader:
    """Reads the previews of one event file."""

    def __init__(self, file: Path) -> None:
        self._loader = RawEventFileLoader(str(file))
        self._samples_seen = -1
        self._values: list[Summary.Value] = []  # of the preview at that time, so far

    def new(self, before: float) -> Iterator[LoggedPreview]:
        """Yield the previews that are complete and were not yet read.

        Args:
            before: samples seen; a preview of fewer samples is complete, and any that something follows.
        """
        for data in self._loader.Load():
            event = Event.FromString(data)
            if event.step != self._samples_seen:
                yield from self._complete()
                self._samples_seen = event.step
            self._values += [value for value in event.summary.value if value.WhichOneof("value") in ("image", "audio")]
        if self._samples_seen < before:
            yield from self._complete()

    def _complete(self) -> Iterator[LoggedPreview]:
        values, self._values = self._values, []
        if values:
            yield LoggedPreview(self._samples_seen, values)


def _start(file: Path) -> float:
    """Return the first step that is valid in ``file`` alone: 1 more than its training resumed from; inf: unknown."""
    for data in RawEventFileLoader(str(file)).Load():
        event = Event.FromString(data)
        if event.session_log.status == SessionLog.START:
            return float(event.step)
        if event.summary.value:
            break
    return math.inf


def _sound_tag(video: str) -> str:
    name, _, last = video.rpartition("/")
    sound = "sound" if last == "video" else f"sound_{last}"
    return f"{name}/{sound}" if name else sound


def _write_video(file: Path, gif: bytes, sound: bytes | None) -> None:
    """Write the frames of ``gif`` to ``file``, with the WAV ``sound``.

    A GIF holds durations in hundredths of a second; the sound is exactly as long as the video.
    """
    frames, fps = _frames(gif)
    waveform, rate = _waveform(sound) if sound else (None, None)
    if waveform is not None and rate in AAC_RATES and len(waveform):
        write_video(file, frames, len(frames) * rate / len(waveform), waveform, rate)
    else:
        write_video(file, frames, fps)


def _frames(gif: bytes) -> tuple[np.ndarray, float]:
    """Return the frames, (F, H, W, 3) uint8, and their rate in Hz. Equal frames in a row are one of double duration."""
    pictures, durations = [], []
    with Image.open(io.BytesIO(gif)) as image:
        for frame in ImageSequence.Iterator(image):
            pictures.append(np.asarray(frame.convert("RGB")))
            durations.append(frame.info.get("duration") or 100)  # milliseconds
    shortest = min(durations)
    counts = [max(1, round(duration / shortest)) for duration in durations]
    return np.repeat(np.stack(pictures), counts, axis=0), 1000 / shortest


def _waveform(data: bytes) -> tuple[np.ndarray, int]:
    """Return the waveform, (N,) float32 in [-1, 1], and the sample rate of a 16-bit WAV."""
    with wave.open(io.BytesIO(data)) as sound:
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").reshape(-1, sound.getnchannels())
        return samples.mean(axis=1, dtype=np.float32) / 32768, sound.getframerate()
