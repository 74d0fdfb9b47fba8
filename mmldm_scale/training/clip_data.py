"""Clips by global position, for the trainers that work on pixels and waveforms."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmldm_scale.config import AutoencoderTraining, KLVAETraining, MediaConfig
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.pixels import to_signal
from mmldm_scale.shards.clips import decode_clip
from mmldm_scale.shards.reader import Sample
from mmldm_scale.training.samples import Samples


class Clips:
    """The clips that ``config`` learns from.

    Raises:
        UserError: as :class:`Samples`.
    """

    def __init__(self, config: KLVAETraining | AutoencoderTraining) -> None:
        self.samples = Samples(config, "clips")

    @property
    def media(self) -> MediaConfig:
        """What a clip is."""
        return self.samples.mixture.manifest.media

    @property
    def classes(self) -> list[str]:
        """The names of the classes; empty if no clip has one."""
        return self.samples.mixture.classes

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
        label, known = sample.meta.get("class"), range(len(self.classes))
        if label is None:
            return -1
        if label not in known:
            raise ValueError(f"class {label!r} is none of the {len(known)} that the set names")
        return int(label)


def signals(clips: Sequence[Clip], audio_image: AudioImage, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the frames (B, F, 3, S, S) and audio images (B, 3, S, S) of ``clips``, in [-1, 1] on ``device``."""
    frames = to_signal(np.stack([clip.frames for clip in clips])).to(device)
    waveforms = torch.from_numpy(np.stack([clip.waveform for clip in clips])).to(device)
    return frames, audio_image.encode(waveforms)


def strips(rows: Sequence[Tensor]) -> Tensor:
    """Lay ``rows`` of N pictures each, (N, 3, S, S) in [-1, 1], under one another: (3, rows·S, N·S) in [0, 1]."""
    lines = [torch.cat(list(row), dim=2) for row in rows]  # each (3, S, N·S)
    return torch.cat(lines, dim=1).float().add(1).div(2).clamp(0, 1).cpu()
