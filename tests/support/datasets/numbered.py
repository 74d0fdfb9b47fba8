"""Media whose frames, colours and sound say what they are, so that a clip can be compared with the truth.

:func:`record` writes a file: ten blocks carry the frame's number, above eight colour bars, and the sound is a chirp.
:func:`numbers`, :func:`bars` and :func:`pitch` read a clip. Colours are converted here by the equations of the
standards, not by libswscale.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.video.frame import VideoFrame

BARS = np.array(
    [(235, 20, 20), (20, 200, 40), (30, 40, 220), (240, 220, 30), (20, 200, 210), (200, 30, 190), (250,) * 3, (90,) * 3]
)
WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
PQ, HLG = 16, 18  # transfers, as in ITU-T H.273


@dataclass(frozen=True)
class Colour:
    """How RGB is coded: matrix, full or limited range, transfer; and the tags that say so (2 and 0: none)."""

    matrix: int = 6
    full: bool = False
    transfer: int = 1
    tagged: bool = True

    def tags(self, codec: Any) -> None:
        """Set the tags of ``codec``, an encoder's context."""
        codec.colorspace = self.matrix if self.tagged else 2
        codec.color_range = (2 if self.full else 1) if self.tagged else 0
        high = self.transfer in (PQ, HLG)
        codec.color_trc, codec.color_primaries = (self.transfer, 9) if high else (2, 2)


def record(
    path: Path,
    *,
    begin: float = 0.0,
    seconds: float = 2.0,
    offset: float = 0.0,
    fps: int = 25,
    size: tuple[int, int] = (96, 160),
    pixel_aspect: Fraction | None = None,
    video_codec: str = "libx264",
    video_options: dict[str, str] | None = None,
    pixels: str = "yuv420p",
    colour: Colour = Colour(),
    audio_codec: str | None = "aac",
    rate: int = 48000,
    layout: str = "mono",
    gains: tuple[float, ...] | None = None,
    **container_options: str,
) -> Path:
    """Write the frames and the sound of [begin, begin + seconds), stamped with their times + ``offset``.

    ``gains`` are the factors of the channels of ``layout`` (default: 1); without ``audio_codec`` there is no sound.
    """
    with av.open(str(path), "w", options=container_options) as container:
        video = container.add_stream(video_codec, rate=fps, options=video_options or {})
        video.height, video.width, video.pix_fmt = *size, pixels
        if pixel_aspect is not None:
            video.codec_context.sample_aspect_ratio = pixel_aspect
        colour.tags(video.codec_context)
        first, last = round(begin * fps), round((begin + seconds) * fps)
        pictures = [_squeezed(_picture(n, size, pixel_aspect or Fraction(1)), size[1]) for n in range(first, last)]
        frames = [_frame(picture, pixels, colour) for picture in pictures]
        for number, frame in enumerate(frames, first):
            frame.pts, frame.time_base = number + round(offset * fps), Fraction(1, fps)
        streams: list[tuple[Any, list[Any]]] = [(video, frames)]
        if audio_codec is not None:
            audio = container.add_stream(audio_codec, rate=rate, layout=layout)
            streams.append((audio, _sounds(audio, begin, seconds, offset, gains)))
        packets = [packet for stream, items in streams for item in [*items, None] for packet in stream.encode(item)]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def join(path: Path, *parts: dict[str, Any]) -> Path:
    """Write transport streams, of which ``parts`` are the recipes, one after the other into ``path``."""
    content = b""
    for recipe in parts:  # stamps begin at 1 s, so that no encoder's delay makes the first ones negative
        options = {"offset": 1.0, "mpegts_flags": "initial_discontinuity", **recipe}
        content += record(path.with_suffix(".part.ts"), **options).read_bytes()
    path.write_bytes(content)
    return path


def numbers(frames: np.ndarray) -> list[int]:
    """Return the numbers that ``frames`` (F, S, S, 3) carry."""
    size = frames.shape[1]
    rows, columns = [size // 8, size * 3 // 8], [round((k + 0.5) * size / 5) for k in range(5)]
    blocks = frames.mean(3)[:, rows][:, :, columns].reshape(len(frames), 10) > 128
    return [int(value) for value in blocks @ (1 << np.arange(10))]


def bars(frame: np.ndarray) -> np.ndarray:
    """Return the (8, 3) colours of the bars of ``frame`` (S, S, 3)."""
    size = len(frame)
    return frame[round(size * 0.8), [round((k + 0.5) * size / 8) for k in range(8)]].astype(int)


def pitch(waveform: np.ndarray, rate: int, time: float) -> float:
    """Return the strongest frequency around ``time`` (seconds into ``waveform``), in Hz."""
    first = round(time * rate) - 1024
    spectrum = np.abs(np.fft.rfft(waveform[first : first + 2048] * np.hanning(2048), 1 << 16))
    return float(spectrum.argmax() * rate / (1 << 16))


def _picture(number: int, size: tuple[int, int], pixel_aspect: Fraction) -> np.ndarray:
    """Return the picture as it is shown, (H, W, 3) uint8: a square in the middle, and black margins beside it."""
    height, width = size[0], round(size[1] * pixel_aspect)
    picture = np.zeros((height, width, 3), np.uint8)
    square = picture[:, (width - height) // 2 :][:, :height]
    for k in range(10):
        if number >> k & 1:
            top, left, right = k // 5 * height // 4, k % 5 * height // 5, (k % 5 + 1) * height // 5
            square[top : top + height // 4, left:right] = 255
    square[height // 2 :] = BARS[np.arange(height) * 8 // height]
    return picture


def _squeezed(picture: np.ndarray, width: int) -> np.ndarray:
    """Return ``picture`` with ``width`` columns."""
    return picture[:, np.arange(width) * picture.shape[1] // width]


def _frame(picture: np.ndarray, pixels: str, colour: Colour) -> VideoFrame:
    frame = VideoFrame(picture.shape[1], picture.shape[0], pixels)
    planes = _coded(picture / 255, colour, 10 if "10" in pixels else 8)
    for i, (plane, values) in enumerate(zip(frame.planes, planes, strict=True)):
        values = values[::2, ::2] if i and "420" in pixels else values
        rows = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
        rows[:, : plane.width] = values
        plane.update(rows.tobytes())
    return frame


def _coded(rgb: np.ndarray, colour: Colour, bits: int) -> list[np.ndarray]:
    """Return Y', Cb and Cr of ``rgb`` (H, W, 3) in [0, 1]."""
    if colour.transfer in (PQ, HLG):
        rgb = _high_range(rgb, colour.transfer)
    red, blue = WEIGHTS[colour.matrix]
    luma = rgb @ (red, 1 - red - blue, blue)
    chroma = [(rgb[..., 2] - luma) / (2 - 2 * blue), (rgb[..., 0] - luma) / (2 - 2 * red)]
    unit = 1 << (bits - 8)
    low, luma_range, chroma_range = (0, 255 * unit, 255 * unit) if colour.full else (16 * unit, 219 * unit, 224 * unit)
    planes = [low + luma_range * luma, *(128 * unit + chroma_range * part for part in chroma)]
    kind = np.uint8 if bits == 8 else np.uint16
    return [np.rint(plane).clip(0, (1 << bits) - 1).astype(kind) for plane in planes]


def _high_range(rgb: np.ndarray, transfer: int) -> np.ndarray:
    """Return the PQ or HLG signal, with BT.2020's primaries, of an SDR picture whose white has 203 cd/m²."""
    convert = np.array([(0.6274, 0.3293, 0.0433), (0.0691, 0.9195, 0.0114), (0.0164, 0.0880, 0.8956)])  # BT.2087
    light = 203 * (rgb**2.4) @ convert.T
    if transfer == PQ:
        power = (light / 10000) ** (2610 / 16384)
        return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)
    luminance = np.maximum(light @ (0.2627, 0.6780, 0.0593), 1e-9)[..., None] / 1000
    scene = light / 1000 * luminance ** (1 / 1.2 - 1)
    with np.errstate(invalid="ignore"):
        return np.where(scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(12 * scene - 0.28466892) + 0.55991073)


def _sounds(
    stream: Any, begin: float, seconds: float, offset: float, gains: tuple[float, ...] | None
) -> list[AudioFrame]:
    rate, count = stream.rate, stream.layout.nb_channels
    size = stream.codec_context.frame_size or 1024
    convert = AudioResampler(format=stream.format.name, layout=stream.layout.name, rate=rate)
    frames: list[AudioFrame] = []
    for first in range(round(begin * rate), round((begin + seconds) * rate), size):
        time = np.arange(first, first + size) / rate
        chirp = 0.5 * np.sin(2 * np.pi * (400 * time + 125 * time**2))
        samples = (chirp[:, None] * (gains or (1.0,) * count)).astype(np.float32)  # (N, C)
        frame = AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=stream.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = rate, first + round(offset * rate), Fraction(1, rate)
        frames += convert.resample(frame)
    return frames
