"""Clips by global position, for the trainables that learn from pixels and waveforms.

``Clips(config).labelled(position)`` reads a clip and its class from the shards. :class:`BlankClips` replaces it where
only the shapes of a sample matter (a trainable's outline).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mmldm_scale.common.modalities import MODALITIES, Modality
from mmldm_scale.config import MediaConfig, ShardTraining
from mmldm_scale.media.clip import NO_FRAMES, NO_SOUND, Clip
from mmldm_scale.shards.clips import decode_clip
from mmldm_scale.shards.reader import Sample
from mmldm_scale.training.data.sample_stream import SampleStream


class ClipSource(Protocol):
    """The source of a dataset's clips."""

    @property
    def media(self) -> MediaConfig:
        """The format of a clip."""

    def clip(self, position: int, frames: Sequence[int] | None = None) -> Clip:
        """Return the clip at global ``position`` with the frames of these indices only (None: all)."""

    def labelled(self, position: int) -> tuple[Clip, int]:
        """Return the clip at global ``position`` with all frames, and its class, -1 if it has none."""


@dataclass(frozen=True)
class BlankClips:
    """Black, silent clips without a class, of ``modalities`` alone."""

    media: MediaConfig
    modalities: Sequence[Modality] = MODALITIES

    def clip(self, position: int, frames: Sequence[int] | None = None) -> Clip:
        """Return a black clip with as many frames as ``frames`` has indices (None: all)."""
        count, size = self.media.frames if frames is None else len(frames), self.media.size
        pictures = np.zeros((count, size, size, 3), np.uint8) if "video" in self.modalities else NO_FRAMES
        sound = np.zeros(self.media.audio_samples, np.float32) if "audio" in self.modalities else NO_SOUND
        return Clip(pictures, sound)

    def labelled(self, position: int) -> tuple[Clip, int]:
        """Return a black clip with all frames, and -1."""
        return self.clip(position), -1


class Clips:
    """The clips of the shard sets of a configuration.

    Attributes:
        samples: the samples of these sets.
        classes: names of the classes; empty if no clip has one.

    Raises:
        UserError: as :class:`SampleStream`.
    """

    def __init__(
        self,
        config: ShardTraining,
        classes: Sequence[str] | None = None,
        modalities: Sequence[Modality] = MODALITIES,
    ) -> None:
        """Open the sets of ``config``.

        Args:
            classes: names of the model's classes; None: those of these sets.
            modalities: what is decoded of a clip; the other has no frames, or no samples.
        """
        self._modalities = modalities
        self.samples = SampleStream(config, "clips")
        names = self.samples.mixture.classes
        self.classes = list(names if classes is None else classes)
        self._labels = [self.classes.index(name) if name in self.classes else -1 for name in names]

    @property
    def media(self) -> MediaConfig:
        """The format of a clip."""
        return self.samples.mixture.manifest.media

    def clip(self, position: int, frames: Sequence[int] | None = None) -> Clip:
        """Return the clip at global ``position`` with the frames of these indices only (None: all)."""
        return self.samples.read([position], lambda samples: self._decode(samples[0], frames))

    def labelled(self, position: int) -> tuple[Clip, int]:
        """Return the clip at global ``position`` with all frames, and its class: an index into ``classes``, or -1."""
        return self.samples.read([position], lambda samples: (self._decode(samples[0], None), self._label(samples[0])))

    def spread(self, count: int) -> list[Clip]:
        """Return ``count`` clips, or all if there are fewer, spread evenly over all sets; the same in every run."""
        return self.samples.spread(count, lambda samples: self._decode(samples[0], None))

    def _decode(self, sample: Sample, frames: Sequence[int] | None) -> Clip:
        return decode_clip(sample.members, frames, self.media, self._modalities)

    def _label(self, sample: Sample) -> int:
        index = sample.meta.get("class")
        if index is None:
            return -1
        if index not in range(len(self._labels)):
            raise ValueError(f"class: {index!r} must be an index into the set's {len(self._labels)} classes")
        return self._labels[int(index)]
