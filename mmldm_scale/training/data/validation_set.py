"""The held-out samples that a model is validated on: other sets than it learns from, made ready as those are.

Which samples these are, their noise and their timesteps are functions of their index alone, the same in every run on
the same sets: the seed is fixed, nothing is mirrored, no context is dropped, and timesteps cover the schedule evenly,
in whatever way training draws them. All else, such as a DiT's task mixture, is training's.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import AutoencoderTraining, DiTTraining, ReadingConfig
from mmldm_scale.shards.mixture import Mixture, mixing_problem
from mmldm_scale.training.data.sample_stream import Samples

SEED = 0

Training = TypeVar("Training", AutoencoderTraining, DiTTraining)


class Dataset(Protocol):
    """What a model learns from, by global position: made of ``samples`` as ``config`` says."""

    config: AutoencoderTraining | DiTTraining
    samples: Samples

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return the samples at ``positions``; "time" is () or (n,) timesteps."""


def settings(config: Training, **changes: Any) -> Training:
    """Return ``config`` as it reads the sets of ``config.validation``, with ``changes`` by which no context is dropped.

    What is damaged goes to ``RUN/validation``.
    """
    return dataclasses.replace(
        config,
        run=str(Path(config.run) / "validation"),
        shards=config.validation,
        weights=[],
        flip=0.0,
        reading=dataclasses.replace(config.reading, window=ReadingConfig().window),
        training=dataclasses.replace(config.training, seed=SEED),
        **changes,
    )


class ValidationSamples:
    """The first samples of ``dataset``, in its order."""

    def __init__(self, dataset: Dataset, learned: Mixture, steps: int, group: int = 1) -> None:
        """Take the sets of ``dataset``, normalised as those of ``learned`` are.

        Args:
            steps: timesteps of the schedule.
            group: consecutive samples that a loss compares with one another; what fills no group is left out.

        Raises:
            UserError: a set is trained on as well, or is of another kind or autoencoder; no group is filled.
        """
        mixture = dataset.samples.mixture
        _check(mixture, learned)
        mixture.statistics = learned.statistics
        self._dataset, self._steps = dataset, steps
        self._count = _count(dataset.config.training.validation_samples, len(mixture), group)

    def __len__(self) -> int:
        """Return how many samples there are."""
        return self._count

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return the samples ``indices`` as training would get them, but for their timesteps."""
        samples = self._dataset.__getitems__(indices)
        times = [self._times(index, sample["time"].shape) for index, sample in zip(indices, samples, strict=True)]
        return [sample | {"time": time} for sample, time in zip(samples, times, strict=True)]

    def _times(self, index: int, shape: torch.Size) -> Tensor:
        """Return the timesteps of sample ``index``, () or (n,): evenly spaced, and each of the n even over samples."""
        count = shape.numel()
        places = (_spread(index) + torch.arange(1, count + 1, dtype=torch.float64) / count) % 1
        return (places * self._steps).long().reshape(shape)


def _check(validation_set: Mixture, learned: Mixture) -> None:
    """Raise UserError if a set of ``validation_set`` is one of ``learned``, or is not like those."""
    for one in validation_set.sets:
        if one.fingerprint in [other.fingerprint for other in learned.sets]:
            raise UserError(f"validation: {one.location} is trained on as well; a set held out of shards= fits")
        problem = mixing_problem(learned.sets[0], one)
        if problem:
            raise UserError(f"validation: a set that is not like those trained on: {problem}")


def _count(wanted: int, there: int, group: int) -> int:
    """Return how many of the samples ``there``, of which so many are ``wanted``, fill groups of ``group``.

    Raises:
        UserError: they fill none.
    """
    count = min(wanted, there)
    if count >= group:
        return count - count % group
    few = f"fewer than the {group} that are compared with one another (contrastive_batch)"
    if there < group:
        raise UserError(f"validation: {there} held-out clips are {few}; more clips fit, or a smaller contrastive_batch")
    raise UserError(f"training.validation_samples: {wanted} are {few}; {group} fits")


def _spread(index: int) -> float:
    """Return where in [0, 1) the point ``index`` lies of the sequence of van der Corput (its bits, mirrored).

    Any 2^k points one after another lie one in each 2^k-th of the interval.
    """
    place, share = 0.0, 0.5
    while index:
        place += share * (index & 1)
        index, share = index >> 1, share / 2
    return place
