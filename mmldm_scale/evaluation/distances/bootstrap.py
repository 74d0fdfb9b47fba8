"""How sure a figure is: its interval, by resampling clips, and its floor, the figure of the reference itself.

Every draw is a function of (seed, name of the figure, number of the draw).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmldm_scale.common import rng
from mmldm_scale.evaluation.distances.distance import Distance


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval around a figure."""

    low: float
    high: float


@dataclass(frozen=True)
class Floor:
    """What the distance says of real clips.

    Attributes:
        value: mean figure of one half of the reference against the other, over several ways to halve it.
        samples: mean figure of as many samples against a half of the reference: it compares with ``value`` at equal
            counts, where a distance depends on the number of clips.
        clips: clips in a half.
    """

    value: float
    samples: float
    clips: int


def interval(
    distance: Distance, samples: np.ndarray, reference: np.ndarray, name: str, seed: int, resamples: int, level: float
) -> Interval:
    """Return the percentile interval of the figure of ``samples`` (N, D) and ``reference`` (M, D).

    Both sets are resampled with replacement, pairs together. Resampled sets have copies of clips, which shifts some
    distances, Fréchet's upwards. Of these the interval is that of the resampled figures' deviations from their mean,
    around the figure of all clips. A mean over clips is not shifted, and its interval stays within the clips' values.

    Args:
        name: of the figure.
        resamples: number of resampled pairs of sets.
        level: share of the resampled figures within the interval, e.g. 0.95.
    """
    estimate = distance.estimate(samples, reference)
    values = []
    for number in range(resamples):
        generator = rng.generator(seed, f"evaluate/bootstrap/{name}", number)
        rows = generator.integers(len(samples), size=len(samples))
        others = rows if distance.compares == "pairs" else generator.integers(len(reference), size=len(reference))
        values.append(estimate(rows, others))
    centre = estimate(np.arange(len(samples)), np.arange(len(reference)))
    present = _present(values)
    shift = present.mean() - centre if distance.copies_count else 0.0
    low, high = np.quantile(present - shift, [(1 - level) / 2, (1 + level) / 2])
    return Interval(max(float(low), distance.lowest), float(high))


def floor(distance: Distance, samples: np.ndarray, reference: np.ndarray, name: str, seed: int, repeats: int) -> Floor:
    """Return the floor of a figure: a random half of the reference against the other, ``repeats`` times, the mean."""
    itself, figure = distance.estimate(reference, reference), distance.estimate(samples, reference)
    half = min(len(reference), len(samples)) // 2
    floors, values = [], []
    for number in range(repeats):
        generator = rng.generator(seed, f"evaluate/floor/{name}", number)
        order = generator.permutation(len(reference))
        first, second = order[:half], order[half : 2 * half]
        floors.append(itself(first, second))
        rows = second if distance.compares == "pairs" else generator.permutation(len(samples))[:half]
        values.append(figure(rows, second))
    return Floor(float(_present(floors).mean()), float(_present(values).mean()), half)


def _present(values: Sequence[float]) -> np.ndarray:
    """Return ``values`` without NaN, those of draws in which no clip has a value; one NaN if nothing is left."""
    present = np.array(values)
    present = present[~np.isnan(present)]
    return present if len(present) else np.array([np.nan])
