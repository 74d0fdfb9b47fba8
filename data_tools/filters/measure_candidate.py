"""Measures one candidate: a stretch of a media file becomes one row of the table of measures."""

from pathlib import Path
from typing import Any

from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.decode import probe
from mmldm_scale.media.track import find_stream, open_container

from ..config import MeasureConfig
from ..sources.source import Source, media_files
from ..sources.video import Video
from . import picture, sound
from .low_res_view import LowResView, low_res_view
from .onsets import agreement
from .perceptual_hash import perceptual_hash

SLOWEST, FASTEST = 8000, 48000  # Hz: sound at rates outside is resampled to the nearest of the two


class CandidateMeasurer:
    """Measures the videos of ``source``; pickled once for each decoding process."""

    def __init__(self, source: Source, config: MeasureConfig) -> None:
        self._folder, self._sound_folder, self._config = source.folder, source.sound_folder, config

    def __call__(self, video: Video) -> dict[str, Any]:
        """Return the measures of ``video`` by column; with ``reason`` and ``detail`` if not all could be taken.

        The column ``seconds`` is how much of the file can be used.
        """
        row: dict[str, Any] = {}
        try:
            with media_files(self._folder, self._sound_folder, video.path, video.audio) as (file, sound):
                self._measure(video, file, sound, row)
        except MediaError as error:
            row |= {"reason": error.reason, "detail": error.detail}
        return row

    def _measure(self, video: Video, file: Path, separate_sound: Path | None, row: dict[str, Any]) -> None:
        with open_container(file) as container:
            row["has_video"] = find_stream(container, "video") is not None
            row["has_audio"] = separate_sound is not None or find_stream(container, "audio") is not None
        number = self._config.source.audio_stream
        info = probe(file, separate_sound, number)
        seconds = info.seconds if video.seconds is None else min(info.seconds, video.seconds)
        begin, end = video.stretch(seconds)
        row |= {"seconds": seconds, "duration": max(0.0, end - begin), "sample_rate": info.sample_rate}
        row |= {"width": info.width, "height": info.height, "fps": info.fps}
        if not info.has_audio:
            raise MediaError("no_audio_stream", "there is a picture but no sound")
        rate = min(max(info.sample_rate, SLOWEST), FASTEST)
        view = low_res_view(file, begin, end, rate, self._config.seconds, separate_sound, number)
        row |= measures(view, self._config.silence_db)


def measures(view: LowResView, silence_db: float = -60.0) -> dict[str, Any]:
    """Return every measure that is taken of pictures and sound, by column."""
    onsets = agreement(view)
    return {
        "loudness": sound.loudness(view),
        "silent_fraction": sound.silent_fraction(view, silence_db),
        "clipped_fraction": sound.clipped_fraction(view),
        "black_fraction": picture.black_fraction(view),
        "frozen_fraction": picture.frozen_fraction(view),
        "sharpness": picture.sharpness(view),
        "motion": picture.motion(view),
        "cuts_per_minute": picture.cuts_per_minute(view),
        "letterbox": picture.letterbox(view),
        "still_bars": picture.still_bars(view),
        "onset_agreement": onsets.share,
        "onset_surplus": onsets.surplus,
        "onset_offset": onsets.offset,
        "hash": perceptual_hash(view),
    }
