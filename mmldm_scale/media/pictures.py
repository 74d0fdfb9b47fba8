"""Pictures of windows: the frames that a video shows at given times, as squares of one size; or all frames of a video.

:func:`window_pictures` yields the frames of each window, :func:`fit_picture` makes a frame square, and
:func:`whole_pictures` returns the frames of the whole video at its own size. A frame of a clip is
the picture shown in the middle of its time, so that nothing is seen more than half a frame early or late, whatever the
source's frame rate. Rotation, mirroring, pixel shape and interlacing are taken into account.
"""

import functools
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation

from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.colours import to_rgb
from mmldm_scale.media.track import END_TOLERANCE, MAX_PIXELS, SEEK_DISTANCE, Entry, VideoTrack

Fit = Callable[[VideoFrame, Fraction | None], np.ndarray]  # from a frame and its pixel shape to a picture
SMOOTH = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT  # how pictures are scaled
TIME_TOLERANCE = 0.001  # seconds: containers round their timestamps to milliseconds


def window_pictures(
    track: VideoTrack, starts: list[float], zero: float, media: MediaConfig
) -> Iterator[np.ndarray | MediaError]:
    """Yield for each start the (F, S, S, 3) uint8 frames of its window, or why there are none.

    Args:
        track: the video.
        starts: seconds from ``zero``, ascending.
        zero: time zero on the container's clock, in seconds.
        media: number, rate and size of the frames.
    """
    middles = [(i + 0.5) / media.fps for i in range(media.frames)]  # seconds
    windows = [[round((start + middle) * 1e6) for middle in middles] for start in starts]  # µs
    fit = functools.partial(fit_picture, media=media)
    pictures = _pictures(track, sorted({time for window in windows for time in window}), zero, fit)
    decoded: dict[int, np.ndarray | MediaError] = {}  # by time in µs
    for window in windows:
        decoded = {time: picture for time, picture in decoded.items() if time >= window[0]}
        while window[-1] not in decoded:
            time, picture = next(pictures)
            decoded[time] = picture
        shown = [decoded[time] for time in window]
        faults = [picture for picture in shown if isinstance(picture, MediaError)]
        yield faults[0] if faults else np.stack([picture for picture in shown if isinstance(picture, np.ndarray)])


def whole_pictures(track: VideoTrack, zero: float, count: int, fps: float) -> np.ndarray:
    """Return ``count`` frames of the video, upright and with square pixels, (count, H, W, 3) uint8.

    Args:
        track: the video.
        zero: when it begins on the container's clock, in seconds.
        count, fps: number and rate of the frames.

    Raises:
        MediaError: corrupt, truncated, unsupported_colours.
    """
    fit = functools.partial(_own_size, width=track.stream.width, height=track.stream.height)
    times = [round((i + 0.5) / fps * 1e6) for i in range(count)]  # µs
    frames: np.ndarray | None = None
    for number, (_, picture) in enumerate(_pictures(track, times, zero, fit)):
        if isinstance(picture, MediaError):
            raise picture
        if frames is None:
            frames = np.empty((count, *picture.shape), np.uint8)  # one array, since a list would need twice the memory
        frames[number] = picture
    assert frames is not None
    return frames


def _pictures(
    track: VideoTrack, times: list[int], zero: float, fit: Fit
) -> Iterator[tuple[int, np.ndarray | MediaError]]:
    """Yield (time, (H, W, 3) uint8 picture or MediaError) for each of the ascending ``times`` (µs from ``zero``)."""
    position = float("inf")
    entry: Entry[VideoFrame] | None = None  # what is shown
    following: Entry[VideoFrame] | None = None
    picture: np.ndarray | MediaError | None = None  # of ``entry``
    for time in times:
        now = zero + time / 1e6
        if not position <= now < position + SEEK_DISTANCE:
            entries, entry, picture = track.entries(now), None, None
            following = next(entries, None)
        position = now
        while following is not None and following.time <= now + TIME_TOLERANCE:
            entry, following, picture = following, next(entries, None), None
        if entry is None and following is not None and following.time <= now + END_TOLERANCE:
            entry = following
        if picture is None:
            picture = _picture(track, entry, fit)
        if following is None and entry is not None and _has_ended(track, entry, now):
            text = f"{track.path}: the picture ends at {entry.time - zero:.3f} s; {time / 1e6:.3f} s is needed"
            yield time, MediaError("truncated", text)
        else:
            yield time, picture


def _has_ended(track: VideoTrack, last: Entry[VideoFrame], now: float) -> bool:
    """Return whether the stream, whose last entry is ``last``, has ended before ``now``; False if that is a fault."""
    if isinstance(last.content, MediaError):
        return False
    return now > last.time + track.frame_seconds(last.content) + END_TOLERANCE


def _picture(track: VideoTrack, entry: Entry[VideoFrame] | None, fit: Fit) -> np.ndarray | MediaError:
    """Return the (H, W, 3) uint8 picture of ``entry``, or why there is none."""
    if entry is None:
        return MediaError("corrupt", f"{track.path}: no picture can be decoded at its beginning")
    if isinstance(entry.content, MediaError):
        return entry.content
    try:
        return fit(entry.content, entry.pixel_aspect)
    except MediaError as error:
        return MediaError(error.reason, f"{track.path}: picture at {entry.time:.3f} s: {error.detail}")
    except (av.FFmpegError, ValueError) as error:
        return MediaError("corrupt", f"{track.path}: picture at {entry.time:.3f} s: {error}")


def fit_picture(frame: VideoFrame, pixel_aspect: Fraction | None, media: MediaConfig) -> np.ndarray:
    """Return ``frame`` as an upright (S, S, 3) uint8 RGB picture with its proportions kept.

    Args:
        frame: the decoded frame.
        pixel_aspect: width of a pixel divided by its height; None: 1.
        media: size S, and ``fit``: "crop" scales the shorter side to S and takes the centre, "pad" scales the longer
            side to S and centres the picture on black.

    Raises:
        ValueError: the frame is so narrow that the scaled picture would fill the memory.
    """
    size = media.size
    shape = np.array([frame.height, frame.width * float(pixel_aspect or 1)])  # as shown
    reference = shape.min() if media.fit == "crop" else shape.max()
    height, width = (max(1, round(side * size / reference)) for side in shape)
    if height * width > MAX_PIXELS:
        raise ValueError(f"{frame.width}×{frame.height} pixels are too narrow to be scaled to {size}×{size}")
    small = _upright(to_rgb(_one_field(frame), width, height, SMOOTH), frame)
    height, width = small.shape[:2]
    if media.fit == "crop":
        top, left = (height - size) // 2, (width - size) // 2
        return np.ascontiguousarray(small[top : top + size, left : left + size])
    picture = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    picture[top : top + height, left : left + width] = small
    return picture


def _own_size(frame: VideoFrame, pixel_aspect: Fraction | None, width: int, height: int) -> np.ndarray:
    """Return ``frame`` as an upright uint8 RGB picture of ``width`` × ``height`` pixels, which are made square.

    Raises:
        ValueError: the pixels are so wide that the picture would fill the memory.
    """
    columns = max(1, round(width * float(pixel_aspect or 1)))
    if columns * height > MAX_PIXELS:
        raise ValueError(f"{width}×{height} pixels of shape {pixel_aspect} are too wide to be made square")
    return _upright(to_rgb(_one_field(frame), columns, height, SMOOTH), frame)


def _one_field(frame: VideoFrame) -> VideoFrame:
    """Return ``frame``, or the upper field of an interlaced one, whose two fields show different moments."""
    if not frame.interlaced_frame:
        return frame
    field = to_rgb(frame, frame.width, frame.height, Interpolation.BILINEAR)[::2]
    return VideoFrame.from_ndarray(np.ascontiguousarray(field), format="rgb24")


def _upright(picture: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Return ``picture`` (H, W, 3) rotated by quarter turns and mirrored as the display matrix of ``frame`` specifies.

    The matrix maps column x and row y to column a·x + c·y and row b·x + d·y.
    """
    side_data: Any = frame.side_data  # PyAV's stubs lack this key
    matrix = side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    (a, b, _), (c, d, _), _ = np.frombuffer(matrix, np.int32).reshape(3, 3).astype(np.int64)
    if abs(b) + abs(c) > abs(a) + abs(d):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
