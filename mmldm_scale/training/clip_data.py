"""Clips by global position, for the trainers that work on pixels and waveforms."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmldm_scale.config import MediaConfig
from mmldm_scale.errors import UserError
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.pixels import to_signal
from mmldm_scale.shards.clips import decode_clip
from mmldm_scale.shards.order import Order
from mmldm_scale.shards.reader import ShardSet


class ClipOrder:
    """A set of clip shards in the order in which a run with ``seed`` sees it.

    Raises:
        UserError: ``folder`` holds no finished set of clips, or an empty one.
    """

    def __init__(self, folder: str, seed: int) -> None:
        self.shards = ShardSet(folder, "clips")
        if not len(self.shards):
            raise UserError(f"{folder}: this set of clip shards is empty; nothing can be learned from it")
        self.order = Order(len(self.shards), seed)

    @property
    def media(self) -> MediaConfig:
        """What a clip of the set is."""
        return self.shards.manifest.media

    def clip(self, position: int, frames: Sequence[int] | None = None) -> Clip:
        """Return the clip at global ``position``, with only the ``frames`` asked for (all if None)."""
        return decode_clip(self.shards[self.order(position)].members, frames)

    def spread(self, count: int) -> list[Clip]:
        """Return ``count`` clips (fewer if the set is smaller) spread evenly over the set, the same in every run."""
        count = min(count, len(self.shards))
        return [decode_clip(self.shards[i * len(self.shards) // count].members) for i in range(count)]


def signals(clips: Sequence[Clip], audio_image: AudioImage, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the frames (B, F, 3, S, S) and audio images (B, 3, S, S) of ``clips``, in [-1, 1] on ``device``."""
    frames = to_signal(np.stack([clip.frames for clip in clips])).to(device)
    waveforms = torch.from_numpy(np.stack([clip.waveform for clip in clips])).to(device)
    return frames, audio_image.encode(waveforms)


def strips(rows: Sequence[Tensor]) -> Tensor:
    """Lay ``rows`` of N pictures each, (N, 3, S, S) in [-1, 1], under one another: (3, rows·S, N·S) in [0, 1]."""
    lines = [torch.cat(list(row), dim=2) for row in rows]  # each (3, S, N·S)
    return torch.cat(lines, dim=1).float().add(1).div(2).clamp(0, 1).cpu()
