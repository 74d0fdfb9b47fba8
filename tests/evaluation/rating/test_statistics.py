"""Agreement and intervals against independent computations and published examples."""

import itertools
import math

import numpy as np
import pytest

from mmldm_scale.evaluation.rating.statistics import bootstrap_means, interval, krippendorff_alpha, wilson_interval

# Four observers, twelve units: the example of Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011).
EXAMPLE = [
    [1, 1, 1],
    [2, 2, 3, 2],
    [3, 3, 3, 3],
    [3, 3, 3, 3],
    [2, 2, 2, 2],
    [1, 2, 3, 4],
    [4, 4, 4, 4],
    [1, 1, 2, 1],
    [2, 2, 2, 2],
    [5, 5, 5],
    [1, 1],
    [3],
]


def alpha_by_pairs(units: list[list[int]]) -> float:
    """Return ordinal alpha from its definition: mean distance of pairs within units over that of all pairs."""
    units = [unit for unit in units if len(unit) > 1]
    values = sorted(itertools.chain(*units))

    def distance(a: int, b: int) -> float:
        low, high = min(a, b), max(a, b)
        between = sum(low <= value <= high for value in values)
        return (between - (values.count(a) + values.count(b)) / 2) ** 2 if a != b else 0.0

    within = sum(distance(a, b) / (len(unit) - 1) for unit in units for a, b in itertools.permutations(unit, 2)) / len(
        values
    )
    overall = sum(distance(a, b) for a, b in itertools.permutations(values, 2)) / (len(values) * (len(values) - 1))
    return 1 - within / overall


def test_alpha_of_the_published_example() -> None:
    alpha = krippendorff_alpha(EXAMPLE, (1, 2, 3, 4, 5))
    assert alpha == pytest.approx(0.815, abs=5e-4)
    assert alpha == pytest.approx(alpha_by_pairs(EXAMPLE))


def test_alpha_of_random_scores_is_that_of_its_definition() -> None:
    draw = np.random.default_rng(0)
    units = [draw.integers(1, 6, draw.integers(1, 6)).tolist() for _ in range(40)]
    alpha = krippendorff_alpha(units, (1, 2, 3, 4, 5))
    assert alpha == pytest.approx(alpha_by_pairs(units))
    assert alpha is not None
    assert abs(alpha) < 0.3


def test_alpha_of_perfect_agreement_and_of_too_little() -> None:
    assert krippendorff_alpha([[1, 1], [5, 5, 5]], (1, 2, 3, 4, 5)) == pytest.approx(1)
    assert krippendorff_alpha([[1], [5]], (1, 2, 3, 4, 5)) is None
    assert krippendorff_alpha([[4, 4], [4, 4]], (1, 2, 3, 4, 5)) is None


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (7, 10), (10, 10), (81, 263)])
def test_wilson_interval_solves_its_equation(successes: int, trials: int) -> None:
    """Its ends are the shares p from which successes / trials is 1.96 standard errors of p away."""
    share = successes / trials
    ends = wilson_interval(successes, trials)
    assert ends is not None
    for p in ends:
        assert abs(share - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / trials), rel=1e-5, abs=1e-6)
    assert ends[0] - 1e-12 <= share <= ends[1] + 1e-12


def test_wilson_interval_of_a_published_example() -> None:
    """Newcombe (1998), table I: 81 of 263."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 0) is None


def test_bootstrap_has_the_spread_of_rater_and_clip_effects() -> None:
    """Scores are effect of rater + effect of clip, so that the mean's variance is the sum of both means' variances."""
    draw = np.random.default_rng(1)
    of_rater, of_clip = draw.normal(0, 1.0, 12), draw.normal(0, 2.0, 30)
    raters, clips = (grid.ravel() for grid in np.meshgrid(np.arange(12), np.arange(30), indexing="ij"))
    values = (of_rater[raters] + of_clip[clips])[:, None]
    means = bootstrap_means(values, np.zeros(360, int), raters, clips, 1, seed=0)[:, 0, 0]
    assert means.mean() == pytest.approx(values.mean(), abs=0.05)
    assert means.std() == pytest.approx(math.sqrt(of_rater.var() / 12 + of_clip.var() / 30), rel=0.06)
    ends = interval(means)
    assert ends is not None
    assert ends[1] - ends[0] == pytest.approx(2 * 1.96 * means.std(), rel=0.06)
    again = bootstrap_means(values, np.zeros(360, int), raters, clips, 1, seed=0)[:, 0, 0]
    assert np.array_equal(means, again)


def test_bootstrap_of_two_groups_draws_their_clips_together() -> None:
    """The second group has the first one's scores plus 1: every draw has that difference."""
    draw = np.random.default_rng(2)
    raters, clips = draw.integers(0, 5, 60), draw.integers(0, 9, 60)
    values = draw.integers(1, 5, (60, 3)).astype(float)
    both = bootstrap_means(
        np.concatenate([values, values + 1]),
        np.repeat([0, 1], 60),
        np.tile(np.unique(raters, return_inverse=True)[1], 2),
        np.tile(np.unique(clips, return_inverse=True)[1], 2),
        2,
        seed=0,
    )
    assert both[:, 1] - both[:, 0] == pytest.approx(np.ones((2000, 3)), nan_ok=True)


def test_interval_without_draws_is_none() -> None:
    assert interval(np.full(5, np.nan)) is None
