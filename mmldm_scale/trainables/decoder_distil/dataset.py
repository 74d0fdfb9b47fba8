"""The training samples of a decoder's distillation by global position: clips with the random numbers of their loss."""

from collections.abc import Sequence

import numpy as np
import torch

from mmldm_scale.common import rng
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.trainables.clip_stream import ClipSource
from mmldm_scale.trainables.decoder_distil.config import DecoderDistilTraining
from mmldm_scale.training.trainable import Batch


class ClipDataset:
    """Training samples by global position, for :class:`~.loss.DecoderDistillation`.

    Attributes:
        places: number of timesteps that the distilled decoder visits; a sample's "time" are places among them.
    """

    def __init__(self, config: DecoderDistilTraining, clips: ClipSource, model: Autoencoder, places: int) -> None:
        self._config, self._clips, self.places = config, clips, places
        self._shapes, self._noise_shape = model.shapes, model.noise_shape

    def __getitems__(self, positions: Sequence[int]) -> list[Batch]:
        """Return the samples at ``positions``."""
        return [self[position] for position in positions]

    def __getitem__(self, position: int) -> Batch:
        """Return the sample at ``position``; :meth:`DecoderDistillation.forward` describes its entries."""
        random = rng.generator(self._config.training.seed, "decoder-distil", position)
        total = self._clips.media.frames
        count = min(self._config.frames_per_clip, total) if "video" in self._shapes else 0
        pictures = count + ("audio" in self._shapes)
        clip, label = self._clips.labelled(position)
        mirrored = random.random() < self._config.flip
        drawn = {
            "targets": random.choice(total, count, replace=False),
            "time": random.integers(self.places, size=pictures),  # independent for each picture
            "noise": random.standard_normal((pictures, *self._noise_shape), dtype=np.float32),
            **{
                f"{name}_noise": random.standard_normal(shape, dtype=np.float32) for name, shape in self._shapes.items()
            },
        }
        sample = {"label": np.array(label), **drawn}
        if "video" in self._shapes:
            sample["frames"] = np.ascontiguousarray(clip.frames[:, :, ::-1] if mirrored else clip.frames)
        if "audio" in self._shapes:
            sample["waveform"] = clip.waveform
        return {name: torch.from_numpy(array) for name, array in sample.items()}
