"""The autoencoder's training samples by global position: clips with the random numbers of their loss."""

from collections.abc import Sequence

import numpy as np
import torch

from mmldm_scale.common import rng
from mmldm_scale.config import DiffusionConfig
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.clip_stream import ClipSource
from mmldm_scale.training.trainable import Batch


class ClipDataset:
    """Training samples by global position, for :class:`~.loss.Reconstruction`."""

    def __init__(self, config: AutoencoderTraining, clips: ClipSource, model: Autoencoder) -> None:
        self.config, self.clips = config, clips
        self.shapes = model.shapes
        self.noise_shape = model.noise_shape
        self.steps = DiffusionConfig().steps

    def __getitems__(self, positions: Sequence[int]) -> list[Batch]:
        """Return the samples at ``positions``."""
        return [self[position] for position in positions]

    def __getitem__(self, position: int) -> Batch:
        """Return the sample at ``position``; :meth:`Reconstruction.forward` describes its entries."""
        random = rng.generator(self.config.training.seed, "autoencoder", position)
        total = self.clips.media.frames
        count = min(self.config.frames_per_clip, total) if "video" in self.shapes else 0
        pictures = count + ("audio" in self.shapes)
        clip, label = self.clips.labelled(position)
        mirrored = random.random() < self.config.flip
        drawn = {
            "targets": random.choice(total, count, replace=False),
            "time": random.integers(self.steps, size=pictures),  # uniform, and independent for each picture
            "noise": random.standard_normal((pictures, *self.noise_shape), dtype=np.float32),
            **{f"{name}_noise": random.standard_normal(shape, dtype=np.float32) for name, shape in self.shapes.items()},
            "dropped": random.random(pictures) < self.config.condition_dropout,
        }
        sample = {"label": np.array(label), **drawn}
        if "video" in self.shapes:
            sample["frames"] = np.ascontiguousarray(clip.frames[:, :, ::-1] if mirrored else clip.frames)
        if "audio" in self.shapes:
            sample["waveform"] = clip.waveform
        return {name: torch.from_numpy(array) for name, array in sample.items()}
