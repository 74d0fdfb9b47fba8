"""The contract of a set of clips: samples under evaluation, or the clips that they are compared with."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmldm_scale.media.clip import Clip


@dataclass(frozen=True)
class ClipRecord:
    """A clip of a set.

    Attributes:
        name: its key; unique in its set.
        clip: frames, (F, H, W, 3) uint8 RGB, and waveform, (N,) float32 mono in [-1, 1], at the rates below. Either may
            be absent (``NO_FRAMES``, ``NO_SOUND``).
        frame_rate: frames per second; 0 without frames.
        sample_rate: Hz; 0 without sound.
        info: what the set says of the clip, e.g. "task", "seed", "label" (the name of its class); empty if nothing.
    """

    name: str
    clip: Clip
    frame_rate: float
    sample_rate: int
    info: Mapping[str, Any] = field(default_factory=dict)


class ClipSet(ABC):
    """Clips in a fixed order, that of their names.

    Attributes:
        path: folder or URL of the set, as the user wrote it.
        kind: "videos", "frames and sound" (in separate files), "sound", "samples" (lossless tars) or "clips" (a set of
            clip shards).
        names: name of each clip, sorted.
    """

    path: str
    kind: str
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, index: int) -> ClipRecord:
        """Return the clip ``index``, 0 ≤ index < len(self), whole and at its own rates.

        Raises:
            MediaError: its file is damaged or not a medium. The message begins with the path.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Return the sha256, in hex, of what identifies the set's content: names, sizes and checksums of its files."""
