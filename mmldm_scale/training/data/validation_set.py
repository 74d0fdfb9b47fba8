"""The samples that a model is validated on: from other shard sets than it learns from, prepared in the same way.

    dataset = MyDataset(settings(config, config.validation, flip=0.0))
    validation = ValidationSamples(dataset, held_out_mixture, training_mixture, count=512, steps=1000)

The samples, their noise and their timesteps are functions of their index alone, so they are the same in every run on
the same sets: the seed is fixed, nothing is mirrored, no context is dropped, and the timesteps cover the schedule
evenly, whatever distribution training draws them from. All else, such as a DiT's task mixture, is as in training.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import ReadingConfig, ShardTraining
from mmldm_scale.shards.mixture import Mixture, mixing_problem
from mmldm_scale.shards.reader import ShardSet

SEED = 0  # of the validation samples of every run

Config = TypeVar("Config", bound=ShardTraining)


class TimedDataset(Protocol):
    """Samples by global position, each with its timesteps."""

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return the samples at ``positions``; "time" is () or (n,) timesteps."""


def settings(config: Config, shards: list[str], **changes: Any) -> Config:
    """Return ``config`` for reading the held-out sets ``shards``.

    Damaged samples go to ``RUN/validation``.

    Args:
        changes: further keys, which switch off what is random in training (mirroring, dropped contexts).
    """
    return dataclasses.replace(
        config,
        run=str(Path(config.run) / "validation"),
        shards=shards,
        weights=[],
        reading=dataclasses.replace(config.reading, window=ReadingConfig().window),
        training=dataclasses.replace(config.training, seed=SEED),
        **changes,
    )


class ValidationSamples:
    """The first samples of a dataset, in its order.

    Attributes:
        startup_messages: lines for the user on recordings that are trained on as well, and on unknown ones.
    """

    def __init__(
        self,
        dataset: TimedDataset,
        held_out: Mixture,
        learned: Mixture,
        count: int,
        steps: int,
        shared_recordings: bool = False,
        group: int = 1,
    ) -> None:
        """Take the first ``count`` samples of ``dataset`` (fewer if it has not as many).

        Args:
            held_out: the sets of ``dataset``.
            learned: the sets that the model learns from.
            steps: timesteps of the schedule.
            shared_recordings: whether both may have samples of one recording.
            group: consecutive samples that a loss compares with one another; an incomplete group is left out.

        Raises:
            UserError: a set or one of its recordings is trained on as well, or it is of another kind or autoencoder;
                there is no complete group.
        """
        _check_sets(held_out, learned)
        self.startup_messages = _check_recordings(held_out, learned, shared_recordings)
        self._dataset, self._steps = dataset, steps
        self._count = _whole_groups(count, len(held_out), group)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._count

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return the samples ``indices`` as training would get them, with evenly spaced timesteps."""
        samples = self._dataset.__getitems__(indices)
        times = [self._times(index, sample["time"].shape) for index, sample in zip(indices, samples, strict=True)]
        return [sample | {"time": time} for sample, time in zip(samples, times, strict=True)]

    def _times(self, index: int, shape: torch.Size) -> Tensor:
        """Return the timesteps of sample ``index``, () or (n,): evenly spaced, and each of the n even over samples."""
        count = shape.numel()
        places = (_van_der_corput(index) + torch.arange(1, count + 1, dtype=torch.float64) / count) % 1
        return (places * self._steps).long().reshape(shape)


def _check_sets(held_out: Mixture, learned: Mixture) -> None:
    """Raise UserError if a held-out set is trained on, or differs in kind from those that are."""
    for shard_set in held_out.sets:
        if shard_set.fingerprint in [trained.fingerprint for trained in learned.sets]:
            raise UserError(f"validation: {shard_set.location} is also in shards; it must be a held-out set")
        problem = mixing_problem(learned.sets[0], shard_set)
        if problem:
            raise UserError(f"validation: the sets must be like those in shards: {problem}")


def _check_recordings(held_out: Mixture, learned: Mixture, may_share: bool) -> list[str]:
    """Return a line for each set that shares recordings with one that is trained on, or does not name them.

    Raises:
        UserError: a held-out set shares recordings, unless it ``may_share`` them.
    """
    pairs = [(shards, trained) for shards in held_out.sets for trained in learned.sets]
    shared = [line for shards, trained in pairs if (line := _shared_recordings(shards, trained))]
    if shared and not may_share:
        remedy = "hold out whole recordings, as shard.py select does, or set shared_recordings=true"
        raise UserError(f"{shared[0]}; {remedy}")
    unknown = [
        f"validation: {shards.location}: {count:,} of {len(shards):,} samples do not say which recording they come "
        "from; whether validation and shards share it is not checked"
        for shards in (*held_out.sets, *learned.sets)
        if (count := shards.unknown_recordings)
    ]
    return shared + unknown


def _shared_recordings(held_out: ShardSet, trained: ShardSet) -> str:
    """Return how many samples of ``held_out`` come from recordings in ``trained``, with an example; "" if none do."""
    shared = np.intersect1d(held_out.recordings, trained.recordings, assume_unique=True)
    if not len(shared):
        return ""
    samples = held_out.indices_of_recordings(shared)
    return (
        f"validation: {len(samples):,} of {len(held_out):,} samples of {held_out.location} come from {len(shared):,} "
        f"recordings that are also in {trained.location}, such as {held_out.key(samples[0])}"
    )


def _whole_groups(count: int, available: int, group: int) -> int:
    """Return how many of ``count`` samples, of which ``available`` exist, fill groups of ``group``.

    Raises:
        UserError: none.
    """
    usable = min(count, available)
    if usable >= group:
        return usable - usable % group
    if available < group:
        raise UserError(
            f"validation: {available} held-out clips are fewer than contrastive_batch = {group}, which are compared "
            "with one another; add clips or lower contrastive_batch"
        )
    raise UserError(
        f"training.validation_samples: {count} must be at least contrastive_batch = {group}, the clips that are "
        "compared with one another"
    )


def _van_der_corput(index: int) -> float:
    """Return point ``index`` of the van der Corput sequence (its bits, mirrored), in [0, 1).

    Of any 2^k consecutive points one lies in each 2^k-th of the interval.
    """
    place, share = 0.0, 0.5
    while index:
        place += share * (index & 1)
        index, share = index >> 1, share / 2
    return place
