"""Files to read, made on the spot: a white flash and a beep begin together at known times."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.video.frame import VideoFrame

from mmldm_scale.media.clip import Clip

HITS = (0.6, 1.1, 1.9)  # seconds: when a flash and a beep begin
LENGTH = 0.1  # seconds that they last


def sound_at(times: np.ndarray) -> np.ndarray:
    """Return the beeps (1 kHz, amplitude 0.6) at ``times`` (N,)."""
    on = np.zeros(len(times), bool)
    for hit in HITS:
        on |= (times >= hit - 1e-9) & (times < hit + LENGTH)
    return (0.6 * np.cos(2 * np.pi * 1000 * times) * on).astype(np.float32)


def picture_at(time: float, height: int, width: int) -> np.ndarray:
    """Return the (H, W, 3) picture at ``time``: white while a beep sounds, else dark grey."""
    on = any(hit - 1e-9 <= time < hit + LENGTH for hit in HITS)
    return np.full((height, width, 3), 255 if on else 40, np.uint8)


def record(
    path: Path,
    *,
    pictures: Sequence[float] | None = None,
    sound: tuple[float, float] | None = (0.0, 2.5),
    gap: tuple[float, float] | None = None,
    size: tuple[int, int] = (48, 64),
    rate: int = 44100,
    layout: str = "stereo",
    video_codec: str = "libx264",
    audio_codec: str = "aac",
    pixels: str = "yuv420p",
    pixel_aspect: Fraction = Fraction(1),
    paint: Callable[[float, int, int], np.ndarray] = picture_at,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
) -> Path:
    """Write a file of the format that ``path`` ends in.

    ``pictures`` are the frames' times (default: 20 a second for 2.5 s; () for none), ``sound`` the time span of the
    sound (None for none), ``gap`` a span left out of it. All times are on the file's clock, so they may be shifted.
    ``options`` are the container's, ``codec_options`` the video encoder's.
    """
    pictures = np.arange(50) / 20 if pictures is None else pictures
    with av.open(str(path), "w", options=options or {}) as container:
        streams = []
        if len(pictures):
            video = container.add_stream(video_codec, rate=20)
            video.height, video.width, video.pix_fmt = *size, pixels
            video.codec_context.time_base = Fraction(1, 1000)
            video.codec_context.gop_size = 10
            video.codec_context.sample_aspect_ratio = pixel_aspect
            video.options = codec_options or {}
            streams.append((video, _video_frames(pictures, size, paint)))
        if sound is not None:
            audio = container.add_stream(audio_codec, rate=rate, layout=layout)
            streams.append((audio, _audio_frames(audio, sound, gap)))
        packets = [packet for stream, frames in streams for frame in [*frames, None] for packet in stream.encode(frame)]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def _video_frames(times: Sequence[float], size: tuple[int, int], paint: Callable) -> list[VideoFrame]:
    frames = []
    for time in times:
        frame = VideoFrame.from_ndarray(paint(time, *size), format="rgb24")
        frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
        frames.append(frame)
    return frames


def _audio_frames(stream: object, span: tuple[float, float], gap: tuple[float, float] | None) -> list[AudioFrame]:
    rate, chunk = stream.rate, stream.codec_context.frame_size or 1024
    convert = AudioResampler(format=stream.format.name, layout=stream.layout.name, rate=rate)
    frames = []
    for first in range(round(span[0] * rate), round(span[1] * rate), chunk):
        if gap is not None and gap[0] <= first / rate < gap[1]:
            continue
        samples = sound_at(np.arange(first, first + chunk) / rate)
        channels = np.repeat(samples[None], stream.layout.nb_channels, 0)
        frame = AudioFrame.from_ndarray(channels, format="fltp", layout=stream.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
        frames += convert.resample(frame)
    return frames


def onsets(clip: Clip, fps: float, rate: int) -> tuple[list[float], list[float]]:
    """Return when flashes and when beeps begin in ``clip``, in seconds from its start."""
    bright = clip.frames.mean((1, 2, 3)) > 140
    loud = np.abs(clip.waveform) > 0.25
    quiet_before = round(0.05 * rate)
    beeps = [i / rate for i in np.flatnonzero(loud) if not loud[max(0, i - quiet_before) : i].any()]
    flashes = [i / fps for i in np.flatnonzero(bright) if i == 0 or not bright[i - 1]]
    return flashes, beeps
