"""Several finished sets as one endless stream, mixed by weight: global position in, sample out.

    mixture = Mixture([ShardSet("data/audioset"), ShardSet("data/landscape")], weights=[3, 1], seed=0, window=64)
    samples = mixture.read(range(384))

Which set a position belongs to, and which place within that set's own order, is a function of the weights alone: any
stretch of positions holds each set's share of it to within one sample for each other set. Each set goes through its own
epochs, without a repeat within one. Only what belongs together is mixed: clips of one kind, latents of one autoencoder.
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.rng import generator
from mmldm_scale.shards.manifest import Manifest, differences
from mmldm_scale.shards.reader import Sample, ShardSet
from mmldm_scale.shards.shuffle import Order

Statistics = dict[str, dict[str, list[float]]]


class Mixture:
    """Sets of one kind, in the order in which a run with ``seed`` sees their samples.

    Attributes:
        sets: the sets.
        orders: each one's order; set number i is at place p of its order where ``locate`` gives (i, p).
        classes: the label names of all sets, each once.
        statistics: latents: those of the stream, as :func:`mixed_statistics` makes them.
    """

    def __init__(self, sets: Sequence[ShardSet], weights: Sequence[float], seed: int, window: int) -> None:
        """Mix ``sets`` by ``weights`` (positive; none: by their sizes, as if they were one set).

        Raises:
            UserError: a set is empty, or two of them do not belong together; the message says which and why.
        """
        for one in sets:
            if not len(one):
                raise UserError(f"{one.location}: this set of {one.manifest.kind} is empty; nothing is to be learned")
            problem = unlike(sets[0], one)
            if problem:
                raise UserError(f"shards: sets that cannot be mixed: {problem}")
        self.sets, self.seed = list(sets), seed
        self.weights = [float(weight) for weight in weights or map(len, sets)]
        self.orders = [Order(one.sizes, seed, window, f"order/{number}") for number, one in enumerate(sets)]
        self.classes = list(dict.fromkeys(name for one in sets for name in one.manifest.classes))
        numbers = {name: number for number, name in enumerate(self.classes)}
        self._classes = [[numbers[name] for name in one.manifest.classes] for one in sets]
        self.statistics = mixed_statistics([one.manifest for one in sets], self.weights)
        self._splits = _splits(self.weights)

    def __len__(self) -> int:
        """Return how many samples the sets hold together."""
        return sum(map(len, self.sets))

    @property
    def manifest(self) -> Manifest:
        """The first set's manifest: kind, media, shapes and autoencoder are those of all sets."""
        return self.sets[0].manifest

    @functools.cached_property
    def fingerprint(self) -> str:
        """The identity of what a run reads: the set's fingerprint; of several, a sha256 (hex) with their weights."""
        if len(self.sets) == 1:
            return self.sets[0].fingerprint
        parts = [[one.fingerprint, weight] for one, weight in zip(self.sets, self.weights, strict=True)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def locate(self, position: int) -> tuple[int, int]:
        """Return (set number, place in that set's order) of global ``position``.

        Set 0 gets its share of the positions, as evenly as whole samples allow; set 1 its share of the rest; and so on.
        """
        for number, (share, total) in enumerate(self._splits):
            before = position * share // total  # of this set, among the positions before this one
            if (position + 1) * share // total > before:
                return number, before
            position -= before
        raise AssertionError("the last set takes all that is left")

    def read(self, positions: Sequence[int]) -> list[Sample]:
        """Return the samples at ``positions``; raise DamagedSample if one of them is damaged."""
        return self.read_indices([self.index(position) for position in positions])

    def read_indices(self, indices: Sequence[tuple[int, int]]) -> list[Sample]:
        """Return the samples that ``indices`` name by (set number, index), likewise."""
        found: dict[tuple[int, int], Sample] = {}
        by_set: dict[int, list[int]] = {}
        for number, index in dict.fromkeys(indices):
            by_set.setdefault(number, []).append(index)
        for number, wanted in by_set.items():
            for index, sample in zip(wanted, self.sets[number].read(wanted), strict=True):
                found[number, index] = self.relabelled(number, sample)
        return [found[which] for which in indices]

    def index(self, position: int) -> tuple[int, int]:
        """Return (set number, index) of the sample at ``position``."""
        number, place = self.locate(position)
        return number, self.orders[number](place)

    def other(self, position: int) -> tuple[int, int]:
        """Return (set number, index) of another sample than that at ``position``, for them to be held together.

        It is the next in the same pool, whose first follows its last: one of the tars that are in turn has it. Only a
        pool of one sample has no other.
        """
        number, place = self.locate(position)
        pool = self.orders[number].pool(place)
        return number, int(pool.indices[(place + 1 - pool.first) % len(pool.indices)])

    def place(self, number: int) -> tuple[int, int]:
        """Return (set number, index) of sample ``number`` of all sets laid end to end."""
        ends = list(itertools.accumulate(map(len, self.sets)))
        chosen = bisect.bisect_right(ends, number)
        return chosen, number - (ends[chosen - 1] if chosen else 0)

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """Return (set number, index) of a sample to take in place of a damaged one at ``position``: any of its set.

        It is a function of the seed, ``position`` and ``attempt`` (1, 2, … until one is whole).
        """
        number, _ = self.locate(position)
        draws = generator(self.seed, "replacement", position).integers(len(self.sets[number]), size=attempt)
        return number, int(draws[-1])

    def relabelled(self, number: int, sample: Sample) -> Sample:
        """Return ``sample`` of set ``number`` with its "class" as an index into ``classes``."""
        return sample if len(self.sets) == 1 else dataclasses.replace(sample, classes=self._classes[number])


def mixed_statistics(manifests: Sequence[Manifest], weights: Sequence[float]) -> Statistics:
    """Return mean and standard deviation per channel of latents drawn from several sets by weight.

    The moments of the mixture: with shares p_i, means m_i and deviations s_i, mean = Σ p_i m_i and variance =
    Σ p_i (s_i² + m_i²) − mean². One set's are its own; clips have none.
    """
    if len(manifests) == 1:
        return manifests[0].statistics
    shares = np.array(weights)[:, None] / sum(weights)  # (sets, 1)
    mixed: Statistics = {}
    for modality in manifests[0].statistics:
        means, deviations = (
            np.array([manifest.statistics[modality][name] for manifest in manifests]) for name in ("mean", "std")
        )  # (sets, C)
        mean = (shares * means).sum(0)
        variance = (shares * (deviations**2 + (means - mean) ** 2)).sum(0)  # the same, without cancellation
        mixed[modality] = {"mean": mean.tolist(), "std": np.sqrt(variance).tolist()}
    return mixed


def _splits(weights: Sequence[float]) -> list[tuple[int, int]]:
    """Return for each set (its weight, its and all later ones' weights) as exact integers."""
    exact = [Fraction(weight) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    return [(share, sum(whole[number:])) for number, share in enumerate(whole)]


def unlike(one: ShardSet, other: ShardSet) -> str | None:
    """Say why the two sets must not be mixed (latents of one autoencoder look like no other's), or return None."""
    identities = []
    for manifest in (one.manifest, other.manifest):
        identity = {"kind": manifest.kind, "media": dataclasses.asdict(manifest.media)}
        if manifest.kind == "latents":
            fingerprint = manifest.autoencoder.get("fingerprint")
            shapes = {"audio_shape": manifest.audio_shape, "video_shape": manifest.video_shape}
            identity |= {"autoencoder": fingerprint, **shapes}
        identities.append(identity)
    found = differences(*identities, sides=(one.location, other.location))
    return found[0] if found else None
