"""Files into clips: pictures and sound cut by presentation time on one clock.

``probe(path)`` tells what is there; ``read_clips(path, starts, media)`` yields one clip for each start. The clock's
zero, from which ``starts`` and ``MediaInfo.seconds`` count, is the first moment that has both picture and sound, so
[0, seconds] is covered by both however the streams are offset; ``MediaInfo.start`` is that moment on the container's
own clock. Where the sound lies in a file of its own (``sound=``), both files begin together. A frame of a clip is the
picture shown in the middle of its time, so nothing is seen more than half a frame early or late, whatever the source's
frame rate; sound is placed where its timestamps say, with silence where there is none. Rotation, mirroring, pixel shape
and interlacing are honoured. Nothing is guessed: a window that needs damaged data yields its MediaError instead of a
clip, and the windows around it are not touched.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation

from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import Clip, MediaError
from mmldm_scale.media.track import MAX_PIXELS, Entry, Track, find_stream, open_container, read_packets

_COMMON = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
SUFFIXES = frozenset([*_COMMON, ".3gp", ".flv", ".m2ts", ".mts", ".ogv", ".ts", ".wmv"])  # of files that are videos
MAX_SECONDS = 48 * 3600.0  # a file that claims more is refused
MIN_BYTES = 16.0  # for each second that a file claims; a black picture once a second with silence takes 300
SLACK = 0.1  # seconds that a window may reach past the end: MP3 sound in MP4 stops up to 0.08 s before its picture
TOLERANCE = 0.001  # seconds: containers round their timestamps to milliseconds
JITTER = 0.02  # seconds that sound timestamps may wander before they mean a gap or an overlap
FAR = 10.0  # seconds ahead from which seeking beats decoding on
MARGIN = 0.01  # seconds of sound on both sides of a window that the resampling filter may see


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds, as its header (or, where that is silent, its packets) says."""

    seconds: float  # for which there are both picture and sound (or just picture, where there is no sound)
    start: float  # time zero of ``read_clips`` on the container's own clock, in seconds
    sound_start: float  # the same moment on the clock of the sound's container: differs if that is a file of its own
    width: int  # pixels, as coded
    height: int  # pixels, as coded
    fps: float  # mean frames per second
    has_audio: bool
    sample_rate: int  # Hz; 0 if there is no sound or none that can be decoded


def probe(path: Path, sound: Path | None = None) -> MediaInfo:
    """Return what ``path`` holds, without decoding it, with the sound of the file ``sound`` instead of its own.

    Raises:
        MediaError: missing_file, empty_file, unreadable, not_media, no_video_stream, unsupported_codec, too_large,
            too_long, corrupt; no_audio_stream only of ``sound``: a video without sound is no error here.
    """
    path = Path(path)
    with ExitStack() as tracks:
        track = tracks.enter_context(closing(Track(path, "video")))
        video, audio = track.stream, find_stream(track.container, "audio")
        if sound is not None:
            audio = tracks.enter_context(closing(Track(sound, "audio"))).stream
        (start, end), offset = _span(path, video), 0.0
        if audio is not None:
            first, last = _span(sound or path, audio)
            offset = 0.0 if sound is None else first - start  # from the picture's clock to the sound's
            start, end = max(start, first - offset), min(end, last - offset)
        if end - start > MAX_SECONDS:
            raise MediaError("too_long", f"{path}: claims {end - start:.0f} s; at most {MAX_SECONDS:.0f} s are read")
        size = path.stat().st_size
        if (end - start) * MIN_BYTES > size:
            raise MediaError("too_long", f"{path}: claims {end - start:.0f} s in {size} bytes")
        return MediaInfo(
            seconds=max(0.0, end - start),
            start=start,
            sound_start=start + offset,
            width=video.width,
            height=video.height,
            fps=float(video.average_rate or 0),
            has_audio=audio is not None,
            sample_rate=getattr(audio, "sample_rate", 0),  # also 0 where no decoder knows the sound
        )


def read_clips(
    path: Path, starts: Sequence[float], media: MediaConfig, need_sound: bool = True, sound: Path | None = None
) -> Iterator[Clip | MediaError]:
    """Yield the clip that begins at each of ``starts``, or the MediaError of a window that cannot be had.

    Args:
        path: any file libav reads.
        starts: seconds from the file's time zero (see the module's text), ascending, not negative.
        media: number, rate and size of frames; sample rate and length of the waveform.
        need_sound: whether a file without a sound stream is an error; else its clips are silent.
        sound: a file whose sound is taken instead of that of ``path``; both begin at the same moment.

    Yields:
        Clip: frames (media.frames, media.size, media.size, 3), waveform (media.audio_samples,).
        MediaError: too_short, truncated or corrupt.

    Both streams are decoded once, whatever the overlap of the windows, and one window's worth is kept in memory. The
    same window is the same clip whichever windows are read beside it; only behind a seek (starts beyond the first
    seconds) may a sound codec that substitutes noise differ in that noise.

    Raises:
        MediaError: the file as a whole gives no clip: as :func:`probe`, and no_audio_stream if ``need_sound``.
    """
    path = Path(path)
    info = probe(path, sound)
    if list(starts) != sorted(starts) or any(start < 0 for start in starts):
        raise ValueError("starts must be ascending and not negative")
    if need_sound and not info.has_audio:
        raise MediaError("no_audio_stream", f"{path}: there is a picture but no sound")
    last = info.seconds - media.seconds + SLACK
    inside = [start for start in starts if start <= last]
    with ExitStack() as tracks:
        video = tracks.enter_context(closing(Track(path, "video")))
        pictures = _window_pictures(video, inside, info.start, media)
        sounds: Iterator = repeat(np.zeros(media.audio_samples, np.float32))
        if info.has_audio:
            audio = tracks.enter_context(closing(Track(sound or path, "audio")))
            sounds = _window_sounds(audio, inside, info.sound_start, media)
        for start in starts:
            if start > last:
                text = f"{path}: a clip of {media.seconds:g} s from {start:g} s on needs more than {info.seconds:.3f} s"
                yield MediaError("too_short", text)
                continue
            frames, waveform = next(pictures), next(sounds)
            faults = [part for part in (frames, waveform) if isinstance(part, MediaError)]
            yield faults[0] if faults else Clip(frames, waveform)


# --- how long a stream is --------------------------------------------------------------------------------------------


def _span(path: Path, stream: Stream) -> tuple[float, float]:
    """Return when ``stream`` starts and ends, in seconds of the container's clock."""
    if stream.duration is not None and stream.start_time is not None:
        start = float(stream.start_time * stream.time_base)
        return start, start + float(stream.duration * stream.time_base)
    return _scanned_span(path, stream.index)


def _scanned_span(path: Path, index: int) -> tuple[float, float]:
    """Return the same from all its packets, for containers that do not say (Matroska, raw and streamed formats)."""
    start, end = float("inf"), float("-inf")
    with open_container(path) as container:
        stream = container.streams[index]
        frame = 1 / stream.average_rate if stream.type == "video" and stream.average_rate else 0
        try:
            for packet in read_packets(container, stream):
                if packet.pts is not None:
                    time = float(packet.pts * packet.time_base)
                    length = float(packet.duration * packet.time_base) if packet.duration else float(frame)
                    start, end = min(start, time), max(end, time + length)
        except av.FFmpegError as error:
            if end < start:
                raise MediaError("corrupt", f"{path}: {error.strerror}") from None
        if end < start:
            raise MediaError("corrupt", f"{path}: its {stream.type} stream has no timestamps")
    return start, end


# --- pictures --------------------------------------------------------------------------------------------------------


def _window_pictures(track: Track, starts: list[float], zero: float, media: MediaConfig) -> Iterator:
    """Yield for each start the (F, S, S, 3) uint8 frames of its window, or its MediaError."""
    middles = [(i + 0.5) / media.fps for i in range(media.frames)]  # seconds
    windows = [[round((start + middle) * 1e6) for middle in middles] for start in starts]  # µs
    pictures = _pictures(track, sorted({time for window in windows for time in window}), zero, media)
    at: dict[int, np.ndarray | MediaError] = {}
    for window in windows:
        at = {time: picture for time, picture in at.items() if time >= window[0]}
        while window[-1] not in at:
            time, picture = next(pictures)
            at[time] = picture
        shown = [at[time] for time in window]
        faults = [picture for picture in shown if isinstance(picture, MediaError)]
        yield faults[0] if faults else np.stack(shown)


def _pictures(track: Track, times: list[int], zero: float, media: MediaConfig) -> Iterator[tuple[int, object]]:
    """Yield (time, (S, S, 3) uint8 picture or MediaError) for each of the ascending ``times`` (µs from ``zero``)."""
    position = float("inf")
    entry: Entry | None = None
    for time in times:
        now = zero + time / 1e6
        if not position <= now < position + FAR:
            entries, entry, picture = track.entries(now), None, None
            following = next(entries, None)
        position = now
        while following is not None and following.time <= now + TOLERANCE:
            entry, following, picture = following, next(entries, None), None
        if entry is None and following is not None and following.time <= now + SLACK:
            entry = following
        if picture is None:
            picture = _show(track, entry, media)
        ended = following is None and entry is not None and isinstance(entry.content, VideoFrame)
        if ended and now > entry.time + track.frame_seconds(entry.content) + SLACK:
            text = f"{track.path}: its picture ends at {entry.time - zero:.3f} s, {time / 1e6:.3f} s was asked for"
            yield time, MediaError("truncated", text)
        else:
            yield time, picture


def _show(track: Track, entry: Entry | None, media: MediaConfig) -> np.ndarray | MediaError:
    """Return the (S, S, 3) uint8 picture of ``entry``, or why there is none."""
    if entry is None:
        return MediaError("corrupt", f"{track.path}: its beginning holds no picture that can be decoded")
    if isinstance(entry.content, MediaError):
        return entry.content
    try:
        return fit_picture(entry.content, track.stream.sample_aspect_ratio, media)
    except (av.FFmpegError, ValueError) as error:
        return MediaError("corrupt", f"{track.path}: picture at {entry.time:.3f} s: {error}")


def fit_picture(frame: VideoFrame, pixel_aspect: object, media: MediaConfig) -> np.ndarray:
    """Return ``frame`` as a (S, S, 3) uint8 RGB picture, turned upright, its shape kept.

    ``media.fit`` "crop" scales the shorter side to S and takes the centre, "pad" scales the longer side to S and puts
    the picture in the middle of black. Raises ValueError for a shape so narrow that scaling it would fill the memory.
    """
    size = media.size
    shape = np.array([frame.height, frame.width * float(pixel_aspect or 1)])  # as shown
    reference = shape.min() if media.fit == "crop" else shape.max()
    height, width = (max(1, round(side * size / reference)) for side in shape)
    if height * width > MAX_PIXELS:
        raise ValueError(f"{frame.width}×{frame.height} pixels are too narrow to be scaled to {size}×{size}")
    smooth = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    small = _one_moment(frame).reformat(width, height, "rgb24", interpolation=smooth, threads=1).to_ndarray()
    small = _upright(small, frame)
    height, width = small.shape[:2]
    if media.fit == "crop":
        top, left = (height - size) // 2, (width - size) // 2
        return np.ascontiguousarray(small[top : top + size, left : left + size])
    picture = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    picture[top : top + height, left : left + width] = small
    return picture


def _one_moment(frame: VideoFrame) -> VideoFrame:
    """Return ``frame``, if it is interlaced only its upper field: the two show different moments."""
    if not frame.interlaced_frame:
        return frame
    return VideoFrame.from_ndarray(np.ascontiguousarray(frame.to_ndarray(format="rgb24")[::2]), format="rgb24")


def _upright(picture: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Return ``picture`` (H, W, 3) turned and mirrored by quarters as the display matrix of ``frame`` says.

    The matrix sends column x and row y to column a·x + c·y and row b·x + d·y.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    (a, b, _), (c, d, _), _ = np.frombuffer(matrix, np.int32).reshape(3, 3).astype(np.int64)
    if abs(b) + abs(c) > abs(a) + abs(d):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


# --- sound -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """Sound of samples [first, end) at the source's rate, counted from time zero; a fault stands for lost sound."""

    first: int
    end: int
    content: np.ndarray | MediaError


def _window_sounds(track: Track, starts: list[float], zero: float, media: MediaConfig) -> Iterator:
    """Yield for each start the (N,) float32 waveform of its window, or its MediaError."""
    rate = track.stream.sample_rate
    margin, slack = round(MARGIN * rate), round(SLACK * rate)
    kept: deque[_Piece] = deque()
    reached = None
    for start in starts:
        first, end = int(start * rate), int(np.ceil((start + media.seconds) * rate))
        if reached is None or first - reached > FAR * rate:
            pieces, kept, reached = _pieces(track, zero + start, zero), deque(), 0
        while kept and kept[0].end < first - margin:
            kept.popleft()
        while reached < end + margin and (piece := next(pieces, None)) is not None:
            kept.append(piece)
            reached = piece.end
        needed = [piece for piece in kept if piece.end > first and piece.first < end]
        faults = [piece.content for piece in needed if isinstance(piece.content, MediaError)]
        if faults:
            yield faults[0]
        elif reached < end - slack:
            text = f"{track.path}: its sound ends at {reached / rate:.3f} s, {end / rate:.3f} s was asked for"
            yield MediaError("truncated", text)
        else:
            line = _lay_out(kept, first - margin, end + margin)
            yield _resampled(line, rate, media, start - (first - margin) / rate)


def _pieces(track: Track, time: float, zero: float) -> Iterator[_Piece]:
    """Yield the sound from ``time`` (seconds, container clock) or earlier on, without overlaps, gaps left out."""
    rate = track.stream.sample_rate
    mix = _Mixer(track)
    end: int | None = None  # of the sound so far
    fault: MediaError | None = None
    for entry in track.entries(time):
        samples = entry.content if isinstance(entry.content, MediaError) else mix(entry.content)
        if isinstance(samples, MediaError):
            fault = samples
            continue
        first = round((entry.time - zero) * rate)
        if end is not None and abs(first - end) <= JITTER * rate:
            first = end
        if fault is not None:
            yield _Piece(first if end is None else end, first, fault)
            fault = None
        if end is not None and first < end:
            samples, first = samples[end - first :], end
        end = first + len(samples)
        yield _Piece(first, end, samples)
    if fault is not None:
        yield _Piece(end or 0, 1 << 62, fault)


class _Mixer:
    """Mixes frames down to one channel, none of which can get louder than it was."""

    def __init__(self, track: Track) -> None:
        self.track = track
        self.kind: tuple[str, str] | None = None  # sample format and layout of the frame before

    def __call__(self, frame: AudioFrame) -> np.ndarray | MediaError:
        """Return the (N,) float32 mix of ``frame``, or why there is none."""
        rate = self.track.stream.sample_rate
        if frame.sample_rate != rate:
            text = f"{self.track.path}: its sample rate changes from {rate} to {frame.sample_rate} Hz on the way"
            return MediaError("corrupt", text)
        if self.kind != (frame.format.name, frame.layout.name):
            self.kind = (frame.format.name, frame.layout.name)
            self.mixer = AudioResampler(format="fltp", layout="mono", rate=rate, options={"rematrix_maxval": "1"})
        try:
            return np.concatenate([part.to_ndarray()[0] for part in self.mixer.resample(frame)])
        except (av.FFmpegError, ValueError) as error:
            return MediaError("corrupt", f"{self.track.path}: sound that cannot be mixed down: {error}")


def _lay_out(pieces: deque[_Piece], first: int, end: int) -> np.ndarray:
    """Return samples [first, end) as (end - first,) float32, silent where no piece is."""
    line = np.zeros(end - first, np.float32)
    for piece in pieces:
        begin, stop = max(piece.first, first), min(piece.end, end)
        if begin < stop and not isinstance(piece.content, MediaError):
            line[begin - first : stop - first] = piece.content[begin - piece.first : stop - piece.first]
    return line


def _resampled(line: np.ndarray, rate: int, media: MediaConfig, skip: float) -> np.ndarray:
    """Return media.audio_samples samples at media's rate, from ``skip`` seconds into ``line`` on.

    libswresample gives back its delay when flushed, so output sample k lies at k / rate: nothing shifts.
    """
    target = media.audio.sample_rate
    resampler = AudioResampler(format="fltp", layout="mono", rate=target)
    frame = AudioFrame.from_ndarray(line[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    parts = [*resampler.resample(frame), *(resampler.resample(None) if target != rate else [])]
    sound = np.concatenate([part.to_ndarray()[0] for part in parts])
    sound = sound[round(skip * target) :][: media.audio_samples]
    sound = np.pad(sound, (0, media.audio_samples - len(sound)))
    return np.clip(sound, -1.0, 1.0)
