"""The nearest training clip of each clip, in a feature space, and how much closer samples are than held-out clips.

The distance of two clips is 1 minus the cosine of the angle between their features, after the mean of the training
clips was subtracted: 0 for copies, about 1 for unrelated clips. It was chosen on one brighter, encoded copy, which it
ranked third of 27 samples (EfficientNet-Lite0), the Euclidean distance of standardised features ninth: weak evidence.

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


def measure_mean(chunks: Chunks) -> np.ndarray:
    """Return the mean of the training clips' features, (D,) float64.

    Raises:
        UserError: all of them have the same features, or a feature is a single number, which has no angle.
    """
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    for chunk in chunks():
        values = chunk.astype(np.float64)
        n, own_mean = len(values), values.mean(axis=0)
        step = own_mean - mean
        squares = squares + np.square(values - own_mean).sum(axis=0) + np.square(step) * (count * n / (count + n))
        mean = mean + step * (n / (count + n))
        count += n
    deviation = np.sqrt(squares / count)
    if len(mean) < 2 or not (deviation > RESOLUTION * np.abs(mean)).any():
        raise UserError("--training: features of all clips have the same direction, so they have no distances")
    return mean


@dataclass(frozen=True)
class Neighbours:
    """The nearest training clip of each of N clips: its ``positions`` (N,) int64 and ``distances`` (N,) float64."""

    positions: np.ndarray
    distances: np.ndarray


def nearest(features: np.ndarray, chunks: Chunks, mean: np.ndarray) -> Neighbours:
    """Return the nearest training clips of the clips with ``features`` (N, D); of several as near, the first.

    Args:
        mean: (D,), from :func:`measure_mean`.
    """
    directions = _directions(features, mean)
    best = np.full(len(directions), -np.inf)  # cosine
    positions, neighbours = np.zeros(len(directions), np.int64), np.zeros_like(directions)
    first = 0  # position of the chunk's first clip
    for chunk in chunks():
        training = _directions(chunk, mean)
        for start in range(0, len(directions), ROWS):
            rows = np.arange(start, min(start + ROWS, len(directions)))
            cosines = directions[rows] @ training.T
            columns = cosines.argmax(axis=1)
            greatest = cosines[np.arange(len(rows)), columns]
            closer = greatest > best[rows]
            best[rows[closer]] = greatest[closer]
            positions[rows[closer]] = first + columns[closer]
            neighbours[rows[closer]] = training[columns[closer]]
        first += len(chunk)
    # 1 − cosine, without the rounding of the product: 0 for copies
    return Neighbours(positions, np.square(directions - neighbours).sum(axis=1) / 2)


def _directions(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return ``features`` (N, D) less ``mean`` as vectors of length 1, (N, D) float64."""
    centred = features.astype(np.float64) - mean
    lengths: np.ndarray = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(lengths > 0, lengths, 1)


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
