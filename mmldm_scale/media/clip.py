"""A clip, the unit of shards and models, and :class:`MediaError`, the reason why a file or a window gives none."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames and the sound of the same time, or one of them alone.

    Attributes:
        frames: (F, H, W, 3) uint8, RGB; ``NO_FRAMES`` if the clip is sound alone.
        waveform: (N,) float32 in [-1, 1], mono; ``NO_SOUND`` if the clip is frames alone.
    """

    frames: np.ndarray
    waveform: np.ndarray


NO_FRAMES = np.zeros((0, 0, 0, 3), np.uint8)  # of a clip that is sound alone
NO_SOUND = np.zeros(0, np.float32)  # of a clip that is frames alone


class MediaError(Exception):
    """A file, or one window of it, gives no clip. It becomes a row of the log of dropped candidates.

    ``reason`` is one of: missing_file, empty_file, unreadable, not_media, no_video_stream, no_audio_stream,
    no_such_stream, unsupported_codec, unsupported_colours, unsupported_sound (too many channels), encrypted, too_large,
    too_long, too_short (the window exceeds the end), truncated (the data end before the time in the header),
    clock_jumps, corrupt (it cannot be decoded). ``detail`` has the place and the amount.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["MediaError"], tuple[str, str]]:
        return MediaError, (self.reason, self.detail)  # keeps both when it is pickled
