"""Several shard sets as one endless stream of samples, mixed by weight.

    mixture = Mixture([ShardSet("data/audioset"), ShardSet("data/landscape")], weights=[3, 1], seed=0, window=64)
    samples = mixture.read(range(384))

The weights alone determine which set a global position belongs to, and which position of that set's own order it is. In
any range of positions each set has its share, to within one sample for each other set. Each set has its own epochs,
without repeats within one. The sets must match: clips of one media format, or latents of one autoencoder.
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
from pathlib import Path
from typing import Any

import numpy as np

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.rng import generator
from mmldm_scale.shards.adjacent_clips import distant_indices, following_index, preceding_index, video_of
from mmldm_scale.shards.manifest import Manifest, differences
from mmldm_scale.shards.reader import Sample, ShardSet
from mmldm_scale.shards.shuffle import ShuffledOrder

Statistics = dict[str, dict[str, list[float]]]


class Mixture:
    """Sets of one kind, in the order in which a run with ``seed`` reads their samples.

    Attributes:
        sets: the sets.
        orders: the order of each set; ``locate`` returns (set number, position in that set's order).
        classes: the label names of all sets, each once.
        statistics: latents: the statistics of the stream, as returned by :func:`mixed_statistics`.
    """

    def __init__(self, sets: Sequence[ShardSet], weights: Sequence[float], seed: int, window: int) -> None:
        """Mix ``sets`` by ``weights``.

        Args:
            sets: the finished sets, at least one.
            weights: positive, one for each set; empty: the sizes of the sets.
            seed: seed of the run.
            window: largest number of shards whose samples are shuffled together.

        Raises:
            UserError: a set is empty, or two sets do not match; the message says which and why.
        """
        for shards in sets:
            if not len(shards):
                raise UserError(f"{shards.location}: this set of {shards.manifest.kind} is empty")
            problem = mixing_problem(sets[0], shards)
            if problem:
                raise UserError(f"shards: these sets cannot be mixed: {problem}")
        self.sets, self.seed = list(sets), seed
        self.weights = [float(weight) for weight in weights or map(len, sets)]
        self.orders = [ShuffledOrder(s.sizes, seed, window, f"order/{number}") for number, s in enumerate(sets)]
        self.classes = list(dict.fromkeys(name for shards in sets for name in shards.manifest.classes))
        numbers = {name: number for number, name in enumerate(self.classes)}
        self._classes = [[numbers[name] for name in shards.manifest.classes] for shards in sets]
        self.statistics = mixed_statistics([shards.manifest for shards in sets], self.weights)
        self._splits = _splits(self.weights)

    def __len__(self) -> int:
        """Return the number of samples of all sets."""
        return sum(map(len, self.sets))

    @property
    def counts(self) -> dict[str, int]:
        """The number of samples of each set, by its location."""
        return {str(shards.location): len(shards) for shards in self.sets}

    @property
    def manifest(self) -> Manifest:
        """The first set's manifest. Kind, media, shapes and autoencoder are the same for all sets."""
        return self.sets[0].manifest

    @functools.cached_property
    def fingerprint(self) -> str:
        """The identity of the stream: the fingerprint of a single set, or a sha256 (hex) over those and the weights."""
        if len(self.sets) == 1:
            return self.sets[0].fingerprint
        parts = [[shards.fingerprint, weight] for shards, weight in zip(self.sets, self.weights, strict=True)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def origins(self) -> list[dict[str, Any]]:
        """Name, number of samples and fingerprint of each set, without the path where it lies."""
        return [
            {"name": Path(shards.location).name, "samples": len(shards), "fingerprint": shards.fingerprint}
            for shards in self.sets
        ]

    def locate(self, position: int) -> tuple[int, int]:
        """Return (set number, position in that set's order) of global ``position``.

        Set 0 gets its share of the positions, as evenly as whole samples allow, set 1 its share of the rest, and so on.
        """
        for number, (share, total) in enumerate(self._splits):
            before = position * share // total  # number of earlier positions that belong to this set
            if (position + 1) * share // total > before:
                return number, before
            position -= before
        raise AssertionError("the last set takes all remaining positions")

    def read(self, positions: Sequence[int]) -> list[Sample]:
        """Return the samples at global ``positions``; raise DamagedSample if one of them is damaged."""
        return self.read_indices([self.index(position) for position in positions])

    def read_indices(self, indices: Sequence[tuple[int, int]]) -> list[Sample]:
        """Return the samples at ``indices``, (set number, index) each; raise DamagedSample if one is damaged."""
        samples: dict[tuple[int, int], Sample] = {}
        by_set: dict[int, list[int]] = {}
        for number, index in dict.fromkeys(indices):
            by_set.setdefault(number, []).append(index)
        for number, of_set in by_set.items():
            for index, sample in zip(of_set, self.sets[number].read(of_set), strict=True):
                samples[number, index] = self.relabelled(number, sample)
        return [samples[key] for key in indices]

    def index(self, position: int) -> tuple[int, int]:
        """Return (set number, index) of the sample at global ``position``."""
        number, place = self.locate(position)
        return number, self.orders[number](place)

    def continued_index(self, position: int) -> tuple[int, int]:
        """Return (set number, index) of the sample at ``position``, if it is to continue a clip.

        It is the one that :meth:`index` says, or, if no sample precedes that one, the sample that follows it. If none
        follows either, it is that one.
        """
        number, index = self.index(position)
        shards = self.sets[number]
        following = following_index(shards, index) if preceding_index(shards, index) is None else None
        return number, index if following is None else following

    def pair_index(self, position: int) -> tuple[int, int]:
        """Return (set number, index) of a sample of another video to pair with the one at ``position``.

        It is the next sample of the same pool, after the last one the first, whose key is of another video; its tar is
        in use anyway. In a pool of one video it is the next sample, and in a pool of one sample that sample itself.
        """
        number, place = self.locate(position)
        shards, pool = self.sets[number], self.orders[number].pool(place)
        first, count = place - pool.first, len(pool.indices)
        video = video_of(shards.key(int(pool.indices[first])))
        following = (int(pool.indices[(first + step) % count]) for step in range(1, count + 1))
        of_another = (index for index in following if video_of(shards.key(index)) != video)
        return number, next(of_another, int(pool.indices[(first + 1) % count]))

    def displaced_index(self, position: int) -> tuple[int, int] | None:
        """Return (set number, index) of another window of the video of the sample at ``position``; None: without.

        It begins at least half a clip before or after it, in the same set, and is a function of the seed and
        ``position``. Of the windows of a video, one has the largest number of such partners. Each partner of each
        window is drawn with a probability of one over that number, and none with the rest. So "a with b" is as likely
        as "b with a", and no window is more frequent among the partners than among the samples that have one. If it
        were, as the ends of a short video are when each sample has a partner, its sound would give it away.
        """
        number, index = self.index(position)
        candidates, most = distant_indices(self.sets[number], index)
        if not candidates:
            return None
        drawn = int(generator(self.seed, "displaced", position).integers(most))
        return (number, candidates[drawn]) if drawn < len(candidates) else None

    def concatenated_index(self, sample: int) -> tuple[int, int]:
        """Return (set number, index) of sample number ``sample`` of the concatenation of all sets."""
        ends = list(itertools.accumulate(map(len, self.sets)))
        number = bisect.bisect_right(ends, sample)
        return number, sample - (ends[number - 1] if number else 0)

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """Return (set number, index) of a random sample of the same set, to replace a damaged one at ``position``.

        It is a function of the seed, ``position`` and ``attempt`` (1, 2, …, until a sample is not damaged).
        """
        number, _ = self.locate(position)
        draws = generator(self.seed, "replacement", position).integers(len(self.sets[number]), size=attempt)
        return number, int(draws[-1])

    def relabelled(self, number: int, sample: Sample) -> Sample:
        """Return ``sample`` of set ``number`` with its "class" as an index into the mixture's ``classes``."""
        return sample if len(self.sets) == 1 else dataclasses.replace(sample, classes=self._classes[number])


def mixed_statistics(manifests: Sequence[Manifest], weights: Sequence[float]) -> Statistics:
    """Return mean and standard deviation per channel of latents drawn from several sets by weight; {} for clips.

    With shares p_i, means m_i and standard deviations s_i of the sets, the mixture has mean = Σ p_i m_i and
    variance = Σ p_i (s_i² + m_i²) − mean².
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
        variance = (shares * (deviations**2 + (means - mean) ** 2)).sum(0)  # the same value, without cancellation
        mixed[modality] = {"mean": mean.tolist(), "std": np.sqrt(variance).tolist()}
    return mixed


def _splits(weights: Sequence[float]) -> list[tuple[int, int]]:
    """Return for each set (its weight, the sum of its and all later weights), scaled to exact integers."""
    exact = [Fraction(weight) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    return [(share, sum(whole[number:])) for number, share in enumerate(whole)]


def mixing_problem(first: ShardSet, second: ShardSet) -> str | None:
    """Return why the two sets cannot be mixed, or None. Latents of different autoencoders are not comparable."""
    lines = differences(_format(first.manifest), _format(second.manifest), (first.location, second.location))
    return lines[0] if lines else None


def _format(manifest: Manifest) -> dict[str, Any]:
    """Return what must be equal in all sets of a mixture."""
    properties: dict[str, Any] = {"kind": manifest.kind, "media": dataclasses.asdict(manifest.media)}
    if manifest.kind == "latents":
        properties["autoencoder"] = manifest.autoencoder.get("fingerprint")
        properties["audio_shape"], properties["video_shape"] = manifest.audio_shape, manifest.video_shape
    return properties
