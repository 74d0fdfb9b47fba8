"""The pictures ``spectrograms/NAME.png`` in a folder of samples: what the sound of each sample and input looks like.

A picture is made from the sound in the sample's file, so it can be made at any time, and is the same each time.
"""

import contextlib
import io
from dataclasses import replace
from pathlib import Path

from mmldm_scale.common.atomic_files import remove_leftovers, write_whole
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.decode import read_sound, sound_seconds
from mmldm_scale.media.spectrogram import spectrogram

FOLDER = "spectrograms"


class Spectrograms:
    """The spectrograms of the media files in ``folder``, whose sound has the format ``media`` and any length."""

    def __init__(self, folder: Path, media: MediaConfig) -> None:
        self._folder, self._media = folder, media
        self._audio_image = AudioImage(media)

    def picture(self, file: Path) -> Path:
        """Return where the picture of the media file ``file``, which lies below the folder, is."""
        return self._folder / FOLDER / file.relative_to(self._folder).with_suffix(".png")

    def write(self, file: Path) -> None:
        """Write the picture of ``file``; none if it has no sound, or is damaged.

        Raises:
            UserError: the disk is full.
            OSError: the picture cannot be written.
        """
        content = self._draw(file)
        if content:
            picture = self.picture(file)
            picture.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another process makes it too, and took ours for a leftover
                write_whole(picture, content)

    def complete(self, file: Path) -> None:
        """Write the picture of ``file`` if it is missing, and remove what a killed process has left of it.

        Raises: as :meth:`write`.
        """
        picture = self.picture(file)
        if picture.exists():
            return
        remove_leftovers(picture)
        self.write(file)

    def _draw(self, file: Path) -> bytes:
        """Return the picture of ``file`` as PNG; empty if there is none."""
        try:
            frames = max(1, round(sound_seconds(file) * self._media.fps))  # of a long sample more than of a clip
            sound = read_sound(file, replace(self._media, frames=frames))
        except MediaError:  # --verify says which samples are damaged
            return b""
        stream = io.BytesIO()
        spectrogram(sound, self._audio_image).save(stream, "PNG")
        return stream.getvalue()
