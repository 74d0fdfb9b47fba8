"""When the frames of a stream are presented, also where the container does not say it.

Presentation times are missing or wrong where a container numbers its packets in decoding order (AVI), states decoding
times only (ASF, MP4 without a table of composition offsets) or none (raw streams): those that libav derives run
backwards as soon as there are B-frames. Decoders output frames in presentation order, so the decoding time of the
packet that a frame came with is right, up to a delay. :class:`FrameTimes` chooses as ``ffmpeg`` does.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from av.audio.frame import AudioFrame
from av.stream import Stream
from av.video.frame import VideoFrame

COUNTED = ("avi", "h264", "hevc")  # formats that count packets, or say nothing of time: a seek would go astray


class FrameTimes:
    """Times of the frames of one run of a decoder."""

    def __init__(self, stream: Stream, format_name: str, length_of: Callable[[Any], float]) -> None:
        """``length_of`` returns how long a frame lasts, in seconds."""
        self._length_of = length_of
        self._time_base = stream.time_base or Fraction(0)  # seconds
        self._counted = stream.type == "video" and format_name in COUNTED
        self._time = float((stream.start_time or 0) * self._time_base)  # of the latest frame, in seconds
        self._latest: VideoFrame | AudioFrame | None = None
        self._last_pts = self._last_dts = float("-inf")  # ticks
        self._wrong_pts = self._wrong_dts = 0  # how often they did not ascend

    def of(self, frame: VideoFrame | AudioFrame) -> float:
        """Return the time of the next ``frame``, in seconds."""
        pts, dts = self._trusted_pts(frame), frame.dts
        if self._counted and self._latest is None:
            pass  # it is shown from the beginning: the decoder's delay is no time without a picture
        elif pts is not None:
            self._time = float(pts * self._time_base)
        elif dts is not None:
            self._time = float(dts * self._time_base)
        elif self._latest is not None:
            self._time += self._length_of(self._latest)
        self._latest = frame
        return self._time

    def _trusted_pts(self, frame: VideoFrame | AudioFrame) -> int | None:
        """Return the presentation time of ``frame`` unless such times went wrong more often than decoding times."""
        pts, dts = frame.pts, frame.dts
        if dts is not None:
            self._wrong_dts += dts <= self._last_dts
            self._last_dts = dts
        if pts is not None:
            self._wrong_pts += pts <= self._last_pts
            self._last_pts = pts
        right = not self._counted and self._wrong_pts <= self._wrong_dts
        return pts if right or dts is None else None
