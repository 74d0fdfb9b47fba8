"""Writing frames and a waveform as an MP4 (H.264 and AAC): ``write_video(path, frames, fps, waveform, sample_rate)``.

Equal input gives equal bytes: one encoder thread, no dates, no program names. The file's edit list compensates the AAC
encoder's priming samples; players and :mod:`mmldm_scale.media.decode` follow it.
"""

import os
import secrets
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mmldm_scale.common.atomic_files import TEMPORARY_SUFFIX, sync

AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)  # Hz


def write_video(
    path: Path, frames: np.ndarray, fps: float, waveform: np.ndarray | None = None, sample_rate: int | None = None
) -> None:
    """Write ``frames`` and, where given, ``waveform`` to ``path`` (MP4), atomically.

    Args:
        path: the file to write; an existing file is replaced.
        frames: (F, H, W, 3) uint8, RGB. An odd side is made even by repeating its last row or column.
        fps: frames per second.
        waveform: (N,) float32 in [-1, 1], mono; values outside are clipped. It may be shorter or longer than the
            picture.
        sample_rate: of the waveform in Hz, one of AAC_RATES.

    Raises:
        ValueError: a shape, a type or the sample rate cannot be written.
        OSError: the file system refuses the file; the error names ``path``.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(f"frames must be (F, H, W, 3) uint8, not {frames.shape} {frames.dtype}")
    sound: tuple[np.ndarray, int] | None = None
    if waveform is not None:
        if waveform.ndim != 1 or sample_rate not in AAC_RATES:
            shape = f"{waveform.shape} at {sample_rate} Hz"
            raise ValueError(f"waveform must be (N,) at one of {AAC_RATES} Hz, not {shape}")
        sound = waveform, sample_rate
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    try:
        with av.open(str(temporary), "w", format="mp4", options=options) as container:
            _write(container, _even(frames), fps, sound)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        if error.filename or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # libav's own names no file
    finally:
        temporary.unlink(missing_ok=True)


def _even(frames: np.ndarray) -> np.ndarray:
    """Return ``frames`` with even height and width, which 4:2:0 colour needs."""
    height, width = frames.shape[1:3]
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _write(container: OutputContainer, frames: np.ndarray, fps: float, sound: tuple[np.ndarray, int] | None) -> None:
    """Write ``frames`` and ``sound`` (waveform and sample rate), interleaved so that players can stream the file."""
    rate = Fraction(fps).limit_denominator(100_000)
    video = _video_stream(container, rate, *frames.shape[1:3])
    audio = None if sound is None else _audio_stream(container, sound[1])
    written = 0  # samples of the waveform
    for number, picture in enumerate(frames):
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = number, 1 / rate
        container.mux(video.encode(frame))
        if audio is not None and sound is not None:
            waveform, sample_rate = sound
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
