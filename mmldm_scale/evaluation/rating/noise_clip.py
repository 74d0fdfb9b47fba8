"""A clip of noise, which attentive raters rate low: coloured squares with white noise as sound."""

from pathlib import Path

import av
import numpy as np

from mmldm_scale.common.rng import generator
from mmldm_scale.media.encode import write_video

MOST_FRAMES = 160
LOUDNESS = 0.05  # standard deviation of the sound, full scale 1: unpleasant, but not loud
SAMPLE_RATE = 16_000  # Hz
SQUARE = 8  # pixels


def write_noise_clip(file: Path, like: Path) -> None:
    """Write a clip of noise to ``file``, with size, frame rate and (up to MOST_FRAMES) length of the clip ``like``."""
    with av.open(str(like)) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or 10)
        height, width = stream.codec_context.height, stream.codec_context.width
        count = min(max(stream.frames, 1), MOST_FRAMES)
    draw = generator(0, "noise clip")
    rows, columns = -(-height // SQUARE), -(-width // SQUARE)
    squares = draw.integers(0, 256, (count, rows, columns, 3), dtype=np.uint8)
    frames = squares.repeat(SQUARE, axis=1).repeat(SQUARE, axis=2)[:, :height, :width]
    sound = draw.normal(0.0, LOUDNESS, round(count / fps * SAMPLE_RATE)).astype(np.float32)
    write_video(file, np.ascontiguousarray(frames), fps, sound, SAMPLE_RATE)
