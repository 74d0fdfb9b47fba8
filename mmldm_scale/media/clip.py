"""A clip, the unit of everything downstream, and the reason why a file or a window of it gives none."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Clip:
    """Pictures and the sound of exactly their time.

    Attributes:
        frames: (F, H, W, 3) uint8, RGB.
        waveform: (N,) float32 in [-1, 1], mono.
    """

    frames: np.ndarray
    waveform: np.ndarray


class MediaError(Exception):
    """A file, or one window of it, that gives no clip; it becomes a line of the drop log.

    ``reason`` is one of: missing_file, empty_file, unreadable, not_media, no_video_stream, no_audio_stream,
    unsupported_codec, too_large, too_long, too_short (the window reaches past the end), truncated (the data end before
    the header says so), corrupt (it cannot be decoded). ``detail`` says where and by how much.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["MediaError"], tuple[str, str]]:
        return MediaError, (self.reason, self.detail)  # so that it crosses process boundaries whole
