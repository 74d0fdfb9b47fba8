"""Pictures of the candidates that the report of a selection names, decoded from the media that were measured."""

import io
from dataclasses import dataclass
from pathlib import Path

from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.decode import probe, read_clips

from ..sources.source import Source, media_files
from ..sources.video import Video
from .clip_picture import THUMB, clip_picture

FRAMES = 4  # of a stretch in its picture
SECONDS = 10.0  # of a longer stretch its beginning is shown
SHORTEST = 0.1  # seconds: of less there is no spectrogram
SOUND = AudioImageConfig(sample_rate=16000, n_fft=1024, win_length=1024, hop_length=256, n_mels=64, f_max=8000)


@dataclass(frozen=True)
class Picture:
    """A JPEG, or why there is none."""

    jpeg: bytes
    problem: str = ""


class PictureMaker:
    """Draws stretches of ``source``; pickled once for each decoding process."""

    def __init__(self, source: Source, audio_stream: int | None) -> None:
        self._folder, self._sound_folder, self._audio_stream = source.folder, source.sound_folder, audio_stream

    def __call__(self, video: Video) -> Picture:
        """Return the picture of a stretch: frames in a row over the spectrogram of their sound."""
        try:
            with media_files(self._folder, self._sound_folder, video.path, video.audio) as (file, sound):
                return self._draw(video, file, sound)
        except MediaError as error:
            return Picture(b"", error.reason)

    def _draw(self, video: Video, file: Path, sound: Path | None) -> Picture:
        seconds = probe(file, sound, self._audio_stream).seconds
        begin, end = video.stretch(seconds if video.seconds is None else min(seconds, video.seconds))
        length = min(end - begin, SECONDS)
        if length < SHORTEST:
            return Picture(b"", "too_short")
        media = MediaConfig(frames=FRAMES, fps=FRAMES / length, size=THUMB, audio=SOUND)
        clip = next(read_clips(file, [begin], media, need_sound=False, sound=sound, audio_stream=self._audio_stream))
        if isinstance(clip, MediaError):
            raise clip
        stream = io.BytesIO()
        clip_picture(clip, AudioImage(media), FRAMES).save(stream, "JPEG", quality=80)
        return Picture(stream.getvalue())
