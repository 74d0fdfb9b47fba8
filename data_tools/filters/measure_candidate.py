"""One candidate into one row of measures."""

from pathlib import Path
from typing import Any

from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.decode import probe
from mmldm_scale.media.track import find_stream, open_container

from ..config import MeasureConfig
from ..sources.source import Source, sound_file
from ..sources.video import Video
from . import picture, sound
from .low_res_view import Look, take_look
from .onsets import agreement
from .stable_hash import perceptual_hash

SLOWEST, FASTEST = 8000, 48000  # Hz: sound at rates outside is resampled to the nearest of the two


class Examiner:
    """Measures videos of ``folder``; made once for each decoding process."""

    def __init__(self, source: Source, config: MeasureConfig) -> None:
        self._folder, self._sound_folder, self._config = source.folder, source.sound_folder, config

    def __call__(self, video: Video) -> dict[str, Any]:
        """Return the measures of ``video`` by column, and where they end early ``reason`` and ``detail``.

        ``seconds`` is how much of the file can be used.
        """
        file = self._folder / video.path
        found: dict[str, Any] = {}
        try:
            self._examine(video, file, found)
        except MediaError as error:
            found |= {"reason": error.reason, "detail": error.detail.removeprefix(f"{file}: ")}
        return found

    def _examine(self, video: Video, file: Path, found: dict[str, Any]) -> None:
        apart = sound_file(self._sound_folder, video.audio)
        with open_container(file) as container:
            found["has_video"] = find_stream(container, "video") is not None
            found["has_audio"] = apart is not None or find_stream(container, "audio") is not None
        info = probe(file, apart)
        seconds = info.seconds if video.seconds is None else min(info.seconds, video.seconds)
        begin, end = video.stretch(seconds)
        found |= {"seconds": seconds, "duration": max(0.0, end - begin), "sample_rate": info.sample_rate}
        found |= {"width": info.width, "height": info.height, "fps": info.fps}
        if not info.has_audio:
            raise MediaError("no_audio_stream", "there is a picture but no sound")
        rate = min(max(info.sample_rate, SLOWEST), FASTEST)
        found |= measures(take_look(file, begin, end, rate, self._config.seconds, apart), self._config.silence_db)


def measures(look: Look, silence_db: float = -60.0) -> dict[str, Any]:
    """Return every measure that is taken of pictures and sound, by column."""
    met = agreement(look)
    return {
        "loudness": sound.loudness(look),
        "silent_fraction": sound.silent_fraction(look, silence_db),
        "clipped_fraction": sound.clipped_fraction(look),
        "black_fraction": picture.black_fraction(look),
        "frozen_fraction": picture.frozen_fraction(look),
        "sharpness": picture.sharpness(look),
        "motion": picture.motion(look),
        "cuts_per_minute": picture.cuts_per_minute(look),
        "letterbox": picture.letterbox(look),
        "still_bars": picture.still_bars(look),
        "onset_agreement": met.share,
        "onset_surplus": met.surplus,
        "onset_offset": met.offset,
        "hash": perceptual_hash(look),
    }
