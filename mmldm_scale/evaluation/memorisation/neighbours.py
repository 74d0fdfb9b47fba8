"""The nearest training clip of each clip, in a feature space, and how much closer samples are than held-out clips.

Each dimension of the feature space is divided by its standard deviation over the training clips. The distance of two
clips is the root mean square of their differences over the dimensions: 0 for copies, about √2 for unrelated clips.
Dimensions that are the same for all training clips do not count.

All arithmetic is in float64 and in the order of the clips. Training clips are read some blocks at a time, twice, so
memory does not grow with their number.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mmldm_scale.common import rng
from mmldm_scale.common.errors import UserError

PERCENTILE = 0.05  # of the held-out clips' distances: samples below it count as close to training
RESOLUTION = 1e-5  # a standard deviation below this share of the values is rounding
ROWS = 4096  # clips whose neighbours are sought at a time

Chunks = Callable[[], Iterator[np.ndarray]]  # begins to read the training clips' features, (n, D) float32 each


@dataclass(frozen=True)
class Scale:
    """How features become vectors whose squared differences add up to squared distances.

    Attributes:
        mean: (D,) float64, of the training clips.
        factor: (D,) float64; 0 for dimensions that do not count.
    """

    mean: np.ndarray
    factor: np.ndarray

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Return ``features`` (N, D) as vectors (N, D) float64."""
        return (features.astype(np.float64) - self.mean) * self.factor


def measure_scale(chunks: Chunks) -> Scale:
    """Return the scale of the training clips that ``chunks`` reads.

    Raises:
        UserError: all of them have the same features.
    """
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    for chunk in chunks():
        values = chunk.astype(np.float64)
        n, own_mean = len(values), values.mean(axis=0)
        step = own_mean - mean
        squares = squares + np.square(values - own_mean).sum(axis=0) + np.square(step) * (count * n / (count + n))
        mean = mean + step * (n / (count + n))
        count += n
    deviation = np.sqrt(squares / max(1, count - 1))
    counts = deviation > RESOLUTION * np.sqrt(np.square(mean) + np.square(deviation))
    if not counts.any():
        raise UserError("--training: all clips have the same features, so no distance can be measured in them")
    factor = np.zeros_like(deviation)
    factor[counts] = 1 / (deviation[counts] * np.sqrt(counts.sum()))
    return Scale(mean, factor)


@dataclass(frozen=True)
class Neighbours:
    """The nearest training clip of each of N clips: its ``positions`` (N,) int64 and ``distances`` (N,) float64."""

    positions: np.ndarray
    distances: np.ndarray


def nearest(features: np.ndarray, chunks: Chunks, scale: Scale) -> Neighbours:
    """Return the nearest training clips of the clips with ``features`` (N, D); of several as near, the first."""
    vectors = scale.apply(features)
    best = np.full(len(vectors), np.inf)  # squared distance
    positions, neighbours = np.zeros(len(vectors), np.int64), np.zeros_like(vectors)
    first = 0  # position of the chunk's first clip
    for chunk in chunks():
        training = scale.apply(chunk)
        for start in range(0, len(vectors), ROWS):
            rows = np.arange(start, min(start + ROWS, len(vectors)))
            squared = _squared_distances(vectors[rows], training)
            columns = squared.argmin(axis=1)
            least = squared[np.arange(len(rows)), columns]
            closer = least < best[rows]
            best[rows[closer]] = least[closer]
            positions[rows[closer]] = first + columns[closer]
            neighbours[rows[closer]] = training[columns[closer]]
        first += len(chunk)
    distances = np.sqrt(np.square(vectors - neighbours).sum(axis=1))  # without the rounding of the search
    return Neighbours(positions, distances)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the squared distances of ``a`` (N, D) and ``b`` (M, D), (N, M), with a rounding error of 1e-15 · |a|²."""
    squared: np.ndarray = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * (a @ b.T)
    return squared


@dataclass(frozen=True)
class Closeness:
    """How many samples are closer to a training clip than most held-out clips are.

    Attributes:
        share: of the samples, in 0..1, whose distance is less than ``threshold``; about :data:`PERCENTILE` if samples
            are as far from the training clips as held-out clips are.
        low, high: the bootstrap interval of the share.
        threshold: the percentile of the held-out clips' distances.
    """

    share: float
    low: float
    high: float
    threshold: float


def closeness(samples: np.ndarray, held_out: np.ndarray, seed: int, resamples: int, level: float) -> Closeness:
    """Return how the distances of ``samples`` (N,) compare with those of ``held_out`` (M,) clips.

    Samples and held-out clips are resampled with replacement for the interval, and the threshold is measured anew.

    Args:
        seed: every draw is a function of it and of the draw's number.
        resamples: number of resampled pairs of sets.
        level: share of the resampled shares within the interval, e.g. 0.95.
    """
    shares = []
    for number in range(resamples):
        draw = rng.generator(seed, "memorisation/bootstrap", number)
        drawn = samples[draw.integers(len(samples), size=len(samples))]
        shares.append(_share(drawn, held_out[draw.integers(len(held_out), size=len(held_out))]))
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2])
    return Closeness(_share(samples, held_out), float(low), float(high), float(np.quantile(held_out, PERCENTILE)))


def _share(samples: np.ndarray, held_out: np.ndarray) -> float:
    return float((samples < np.quantile(held_out, PERCENTILE)).mean())
