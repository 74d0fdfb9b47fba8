"""Frames and a waveform into an MP4 (H.264 + AAC) that any player opens, with sound and picture in step.

The same input gives the same bytes: one encoder thread, no dates, no program names. The AAC encoder's priming samples
are taken back by the file's edit list, which players and :mod:`mmldm_scale.media.decode` follow.
"""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)  # Hz


def write_video(
    path: Path, frames: np.ndarray, fps: float, waveform: np.ndarray | None = None, sample_rate: int | None = None
) -> None:
    """Write ``frames`` and, where given, ``waveform`` to ``path`` (MP4), which appears whole or not at all.

    Args:
        path: the file to write; one that exists is replaced.
        frames: (F, H, W, 3) uint8, RGB. An odd side is made even by repeating its last row or column.
        fps: frames per second.
        waveform: (N,) float32 in [-1, 1], mono; values beyond are clipped. It may be shorter or longer than the
            picture.
        sample_rate: of the waveform in Hz, one of AAC_RATES.

    Raises:
        ValueError: shapes or rates that cannot be written.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(f"frames must be (F, H, W, 3) uint8, not {frames.shape} {frames.dtype}")
    if waveform is not None and (waveform.ndim != 1 or sample_rate not in AAC_RATES):
        raise ValueError(f"a waveform must be (N,) at one of {AAC_RATES} Hz, not {waveform.shape} at {sample_rate}")
    path = Path(path)
    aside = path.with_name(f".{path.name}.tmp")
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    try:
        with av.open(str(aside), "w", format="mp4", options=options) as container:
            _write(container, _even(frames), fps, waveform, sample_rate)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _even(frames: np.ndarray) -> np.ndarray:
    """Return ``frames`` with even height and width, which 4:2:0 colour needs."""
    height, width = frames.shape[1:3]
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _write(
    container: OutputContainer, frames: np.ndarray, fps: float, waveform: np.ndarray | None, sample_rate: int | None
) -> None:
    rate = Fraction(fps).limit_denominator(100_000)
    video = _video_stream(container, rate, *frames.shape[1:3])
    audio = _audio_stream(container, sample_rate) if waveform is not None else None
    written = 0
    for number, picture in enumerate(frames):  # turn by turn, so that the file can be played while it is read
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = number, 1 / rate
        container.mux(video.encode(frame))
        if audio is not None:
            last = number == len(frames) - 1
            until = len(waveform) if last else min(len(waveform), int((number + 1) / rate * sample_rate))
            _write_sound(container, audio, waveform[written:until], written)
            written = until
    container.mux(video.encode(None))
    if audio is not None:
        container.mux(audio.encode(None))


def _video_stream(container: OutputContainer, rate: Fraction, height: int, width: int) -> VideoStream:
    stream = container.add_stream("libx264", rate=rate)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.codec_context.time_base = 1 / rate
    stream.codec_context.thread_count = 1
    stream.options = {"crf": "18", "preset": "medium"}
    return stream


def _audio_stream(container: OutputContainer, sample_rate: int) -> AudioStream:
    stream = container.add_stream("aac", rate=sample_rate, layout="mono")
    stream.bit_rate = 128_000
    return stream


def _write_sound(container: OutputContainer, stream: AudioStream, samples: np.ndarray, position: int) -> None:
    if not len(samples):
        return
    sound = np.clip(samples, -1.0, 1.0).astype(np.float32)[None]  # (1, N)
    frame = AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = stream.rate, position, Fraction(1, stream.rate)
    container.mux(stream.encode(frame))
