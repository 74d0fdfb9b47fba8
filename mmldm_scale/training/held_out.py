"""The held-out latents that the DiT is validated on: other sets than it learns from, made ready as those are.

Which samples these are, their noise and their timesteps are functions of their index alone, the same in every run on
the same sets: the seed is fixed, nothing is mirrored, no context is dropped, and timesteps cover the schedule evenly,
in whatever way training draws them. The task mixture is training's.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmldm_scale.config import DiTTraining, ReadingConfig
from mmldm_scale.errors import UserError
from mmldm_scale.shards.mixture import unlike
from mmldm_scale.training.latent_data import LatentDataset

SEED = 0


def settings(config: DiTTraining) -> DiTTraining:
    """Return ``config`` as it reads the sets of ``config.validation``; what is damaged goes to ``RUN/validation``."""
    reading = config.reading
    return dataclasses.replace(
        config,
        run=str(Path(config.run) / "validation"),
        shards=config.validation,
        weights=[],
        flip=0.0,
        context=dataclasses.replace(config.context, dropout=0.0),
        reading=dataclasses.replace(reading, window=ReadingConfig().window),
        training=dataclasses.replace(config.training, seed=SEED),
    )


class HeldOutLatents:
    """The first samples of ``held_out``, in its order."""

    def __init__(self, held_out: LatentDataset, training: LatentDataset) -> None:
        """Take the sets of ``held_out``, normalised as those of ``training`` are.

        Raises:
            UserError: a set is trained on as well, or is of another kind or autoencoder.
        """
        mixture, learned = held_out.samples.mixture, training.samples.mixture
        for one in mixture.sets:
            if one.fingerprint in [other.fingerprint for other in learned.sets]:
                raise UserError(f"validation: {one.location} is trained on as well; a set held out of shards= fits")
            problem = unlike(learned.sets[0], one)
            if problem:
                raise UserError(f"validation: a set that is not like those trained on: {problem}")
        mixture.statistics = learned.statistics
        self._dataset = held_out
        self._count = min(held_out.config.training.validation_samples, len(mixture))

    def __len__(self) -> int:
        """Return how many samples there are."""
        return self._count

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return the samples ``indices`` as training would get them, but for their timesteps."""
        samples, steps = self._dataset.__getitems__(indices), self._dataset.config.diffusion.steps
        times = [torch.tensor(int(_spread(index) * steps)) for index in indices]
        return [sample | {"time": time} for sample, time in zip(samples, times, strict=True)]


def _spread(index: int) -> float:
    """Return where in [0, 1) the point ``index`` lies of the sequence of van der Corput (its bits, mirrored).

    Any 2^k points one after another lie one in each 2^k-th of the interval.
    """
    place, share = 0.0, 0.5
    while index:
        place += share * (index & 1)
        index, share = index >> 1, share / 2
    return place
