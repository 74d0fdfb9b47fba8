"""When the frames of a stream are presented, also where the container does not say it.

Presentation times are missing or wrong where a container numbers its packets in decoding order (AVI), states decoding
times only (ASF, MP4 without a table of composition offsets) or none (raw streams): those that libav derives run
backwards as soon as there are B-frames. Decoders output frames in presentation order, so the decoding time of the
packet that a frame came with is right, up to a delay. :class:`FrameTimes` chooses as ``ffmpeg`` does.
"""

from av.audio.frame import AudioFrame
from av.stream import Stream
from av.video.frame import VideoFrame

COUNTED = ("avi",)  # formats whose timestamps are packet counts, which are wrong after a seek


class FrameTimes:
    """Times of the frames of one run of a decoder."""

    def __init__(self, stream: Stream, format_name: str) -> None:
        self._unit = float(stream.time_base or 0)  # seconds
        self._counted = stream.type == "video" and format_name in COUNTED
        self._start = self._next = (stream.start_time or 0) * self._unit  # seconds
        self._first = True
        self._last_pts = self._last_dts = float("-inf")  # ticks
        self._wrong_pts = self._wrong_dts = 0  # how often they did not ascend

    def of(self, frame: VideoFrame | AudioFrame, length: float) -> float:
        """Return the time of the next ``frame``, in seconds; ``length`` is how long it lasts."""
        pts, dts = self._trusted_pts(frame), frame.dts
        if self._counted and self._first:
            time = self._start  # the decoder's delay is no time without a picture
        elif pts is not None:
            time = pts * self._unit
        else:
            time = self._next if dts is None else dts * self._unit
        self._first, self._next = False, time + length
        return time

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
