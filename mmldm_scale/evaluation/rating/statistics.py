"""The statistics of ratings: intervals over raters and clips, agreement between raters, intervals of shares."""

import math
from collections.abc import Sequence

import numpy as np

from mmldm_scale.common.rng import generator

REPLICATES = 2000  # of the bootstrap
BLOCK = 100  # replicates that are computed at once, for the memory's sake
LEVEL = 95  # % of an interval
_Z = 1.959963984540054  # of the normal distribution, for LEVEL


def bootstrap_means(
    values: np.ndarray, groups: np.ndarray, raters: np.ndarray, clips: np.ndarray, count: int, seed: int
) -> np.ndarray:
    """Return the means of each group when raters and clips are drawn again, both with replacement.

    A score counts as often as its rater times as often as its clip was drawn (the pigeonhole bootstrap, Owen 2007), so
    that the intervals hold for other raters and for other clips of the same models. Calls with the same raters, clips
    and seed draw the same.

    Args:
        values: (V, S), S scores of each of V ratings.
        groups: (V,) the group of each rating, 0 ≤ group < ``count``.
        raters: (V,) the number of its rater, from 0 without gaps.
        clips: (V,) the number of its clip, from 0 without gaps.

    Returns:
        (R, ``count``, S); NaN where a draw has no rating of a group.
    """
    draw = generator(seed, "rating/bootstrap")
    by_rater, by_clip = _multiplicities(draw, int(raters.max()) + 1), _multiplicities(draw, int(clips.max()) + 1)
    members = np.arange(count)[:, None] == groups  # (count, V)
    means = np.empty((REPLICATES, count, values.shape[1]))
    for begin in range(0, REPLICATES, BLOCK):
        block = slice(begin, begin + BLOCK)
        weights = (by_rater[block, raters] * by_clip[block, clips]).astype(float)  # (BLOCK, V)
        for group in range(count):
            own = weights[:, members[group]]
            with np.errstate(invalid="ignore"):
                means[block, group] = own @ values[members[group]] / own.sum(axis=1, keepdims=True)
    return means


def _multiplicities(draw: np.random.Generator, count: int) -> np.ndarray:
    """Return how often each of ``count`` things occurs in each of REPLICATES draws of as many: (R, ``count``)."""
    drawn = draw.integers(count, size=(REPLICATES, count)) + count * np.arange(REPLICATES)[:, None]
    return np.bincount(drawn.ravel(), minlength=REPLICATES * count).reshape(REPLICATES, count)


def interval(replicates: np.ndarray) -> tuple[float, float] | None:
    """Return the percentile interval of ``replicates`` (R,) without its NaNs; None if none is left."""
    valid = replicates[~np.isnan(replicates)]
    if not valid.size:
        return None
    low, high = np.percentile(valid, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def krippendorff_alpha(units: Sequence[Sequence[int]], scores: Sequence[int]) -> float | None:
    """Return Krippendorff's alpha for ordinal data: 1 is perfect agreement, 0 that of chance.

    Args:
        units: the scores that each clip has from its raters; clips with fewer than two do not count.
        scores: all possible scores, in ascending order.

    Returns:
        alpha; None if no clip has two scores, or all scores are the same.
    """
    place = {score: i for i, score in enumerate(scores)}
    coincidences = np.zeros((len(scores), len(scores)))
    for unit in units:
        if len(unit) > 1:
            counts = np.bincount([place[score] for score in unit], minlength=len(scores)).astype(float)
            coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = coincidences.sum(axis=0)
    below = np.cumsum(totals) - totals / 2  # rank of each score's middle
    distances = (below[:, None] - below[None, :]) ** 2
    expected = (np.outer(totals, totals) * distances).sum()
    if expected == 0:
        return None
    return float(1 - (totals.sum() - 1) * (coincidences * distances).sum() / expected)


def wilson_interval(successes: int, trials: int) -> tuple[float, float] | None:
    """Return Wilson's interval of a share of ``successes`` in ``trials``; None without trials."""
    if not trials:
        return None
    share, squared = successes / trials, _Z**2
    centre = (share + squared / (2 * trials)) / (1 + squared / trials)
    half = _Z * math.sqrt(share * (1 - share) / trials + squared / (4 * trials**2)) / (1 + squared / trials)
    return max(centre - half, 0.0), min(centre + half, 1.0)
