"""Clips by global position, for the trainables that learn from pixels and waveforms.

``Clips(config).labelled(position)`` reads a clip from the shards; :class:`BlankClips` stands in for it where only the
shapes of a sample are needed (the planner).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mmldm_scale.config import MediaConfig, ShardTraining
from mmldm_scale.media.clip import Clip
from mmldm_scale.shards.clips import decode_clip
from mmldm_scale.shards.reader import Sample
from mmldm_scale.training.data.sample_stream import SampleStream


class ClipSource(Protocol):
    """Where a dataset gets its clips from."""

    @property
    def media(self) -> MediaConfig:
        """What a clip is."""

    def clip(self, position: int, frames: Sequence[int] | None = None) -> Clip:
        """Return the clip at global ``position`` with only the ``frames`` given (None: all)."""

    def labelled(self, position: int) -> tuple[Clip, int]:
        """Return the whole clip at global ``position`` and its class, -1 if it has none."""


@dataclass(frozen=True)
class BlankClips:
    """Black clips without sound and class."""

    media: MediaConfig

    def clip(self, position: int, frames: Sequence[int] | None = None) -> Clip:
        """Return a clip; see :class:`ClipSource`."""
        count, size = self.media.frames if frames is None else len(frames), self.media.size
        return Clip(np.zeros((count, size, size, 3), np.uint8), np.zeros(self.media.audio_samples, np.float32))

    def labelled(self, position: int) -> tuple[Clip, int]:
        """Return a clip and -1."""
        return self.clip(position), -1


class Clips:
    """The clips that ``config`` learns from.

    Attributes:
        samples: what they are made of.
        classes: the names of the classes; empty if no clip has one.

    Raises:
        UserError: as :class:`SampleStream`.
    """

    def __init__(self, config: ShardTraining, classes: Sequence[str] | None = None) -> None:
        """Open the sets of ``config``; ``classes``: those that the model knows, if not those of these sets."""
        self.samples = SampleStream(config, "clips")
        names = self.samples.mixture.classes
        self.classes = list(names if classes is None else classes)
        self._labels = [self.classes.index(name) if name in self.classes else -1 for name in names]

    @property
    def media(self) -> MediaConfig:
        """What a clip is."""
        return self.samples.mixture.manifest.media

    def clip(self, position: int, frames: Sequence[int] | None = None) -> Clip:
        """Return the clip at global ``position``, with only the ``frames`` asked for (all if None)."""
        return self.samples.read([position], lambda found: self._decode(found[0], frames))

    def labelled(self, position: int) -> tuple[Clip, int]:
        """Return the whole clip at global ``position`` and its class, an index into ``classes``: -1 if it has none."""
        return self.samples.read([position], lambda found: (self._decode(found[0], None), self._label(found[0])))

    def spread(self, count: int) -> list[Clip]:
        """Return ``count`` clips (fewer if there are not as many) spread over all sets, the same in every run."""
        return self.samples.spread(count, lambda found: self._decode(found[0], None))

    def _decode(self, sample: Sample, frames: Sequence[int] | None) -> Clip:
        return decode_clip(sample.members, frames, self.media)

    def _label(self, sample: Sample) -> int:
        label, named = sample.meta.get("class"), range(len(self._labels))
        if label is None:
            return -1
        if label not in named:
            raise ValueError(f"class {label!r} is none of the {len(named)} that the set names")
        return self._labels[int(label)]
