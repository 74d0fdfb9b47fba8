"""The pictures ``spectrograms/NAME.png`` in a folder of samples: what the sound of each sample and input looks like.

A picture is made from the sound in the sample's file, so it can be made at any time, and is the same each time.
"""

import io
from pathlib import Path

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.decode import read_sound
from mmldm_scale.media.spectrogram import spectrogram

FOLDER = "spectrograms"


class Spectrograms:
    """The spectrograms of the media files in ``folder``, whose sound has the format ``media``."""

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
        try:
            sound = read_sound(file, self._media)
        except MediaError:  # --verify says which samples are damaged
            return
        picture, stream = self.picture(file), io.BytesIO()
        spectrogram(sound, self._audio_image).save(stream, "PNG")
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_whole(picture, stream.getvalue())
