"""The figures of a report, computed from a study's votes."""

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from mmldm_scale.evaluation.rating import checks
from mmldm_scale.evaluation.rating.plan import SCORES
from mmldm_scale.evaluation.rating.statistics import bootstrap_means, interval, krippendorff_alpha, wilson_interval
from mmldm_scale.evaluation.rating.store import SCALES, StoredVote
from mmldm_scale.evaluation.rating.study import Study

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of means, with its interval; None where there are too few ratings for it."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class SetScores:
    """The scores of a set on one scale.

    Attributes:
        mean: with its interval.
        counts: number of ratings with each score, 1 to 5.
    """

    mean: Estimate
    counts: Sequence[int]


@dataclass(frozen=True)
class Preference:
    """How often raters preferred each of two sets, shares with Wilson's intervals of ``votes`` pairs."""

    sets: tuple[str, str]
    votes: int
    first: int
    none: int
    second: int
    intervals: tuple[Interval, Interval, Interval]  # of the shares of first, none, second


@dataclass(frozen=True)
class Figures:
    """What the votes of some raters amount to.

    Attributes:
        raters: who gave at least one of the votes.
        votes: on questions of the study, without attention checks.
        scores: by set and scale; a set without ratings is left out.
        differences: by pair of sets and scale: mean of the first minus mean of the second.
        agreement: Krippendorff's alpha (ordinal) by scale.
        preferences: of each pair of sets that was shown.
        ratings_per_clip: number of clips by the number of ratings that they have.
    """

    raters: int
    votes: int
    scores: Mapping[str, Mapping[str, SetScores]]
    differences: Mapping[tuple[str, str], Mapping[str, Estimate]]
    agreement: Mapping[str, float | None]
    preferences: Sequence[Preference]
    ratings_per_clip: Mapping[int, int]


@dataclass(frozen=True)
class RaterFigures:
    """One rater: number from 0, votes without checks, checks answered and failed, median seconds on a page."""

    rater: int
    votes: int
    checks: int
    failed: int
    excluded: bool
    seconds: float


@dataclass(frozen=True)
class _Rating:
    """The scores that a clip has in one vote; ``against``: the set beside it, or ""."""

    rater: int
    set: str
    key: str
    against: str
    scores: tuple[int, ...]


def rater_figures(votes: Sequence[StoredVote]) -> list[RaterFigures]:
    """Return the figures of each rater who has voted, by number."""
    result = []
    for rater, own in itertools.groupby(votes, key=lambda vote: vote.rater):
        given = list(own)
        checked = [vote for vote in given if vote.question.check]
        failed = sum(not checks.passes(vote.question, vote.vote) for vote in checked)
        excluded = checks.is_excluded(len(checked), failed)
        seconds = median(vote.vote.seconds for vote in given)
        result.append(RaterFigures(rater, len(given) - len(checked), len(checked), failed, excluded, seconds))
    return result


def figures(study: Study, votes: Sequence[StoredVote], excluded: Collection[int] = ()) -> Figures:
    """Return the figures of ``votes``, without those of the raters ``excluded`` and without attention checks."""
    counted = [vote for vote in votes if not vote.question.check and vote.rater not in excluded]
    ratings = [rating for vote in counted for rating in _ratings(vote)]
    return Figures(
        raters=len({vote.rater for vote in counted}),
        votes=len(counted),
        scores=_scores(study, ratings),
        differences=_differences(study, ratings),
        agreement=_agreement(ratings),
        preferences=[found for pair in itertools.combinations(study.sets, 2) if (found := _preference(pair, counted))],
        ratings_per_clip=_ratings_per_clip(study, ratings),
    )


def _ratings(vote: StoredVote) -> list[_Rating]:
    clips, result = vote.question.clips, []
    for place, (clip, scores) in enumerate(zip(clips, vote.vote.scores, strict=True)):
        against = clips[1 - place].set if len(clips) > 1 else ""
        result.append(_Rating(vote.rater, clip.set, clip.key, against, tuple(scores[scale] for scale in SCALES)))
    return result


def _scores(study: Study, ratings: Sequence[_Rating]) -> dict[str, dict[str, SetScores]]:
    present = {rating.set for rating in ratings}
    names = [name for name in study.sets if name in present]
    replicates = _replicates(study, ratings, [names.index(rating.set) for rating in ratings], len(names))
    result: dict[str, dict[str, SetScores]] = {}
    for i, name in enumerate(names):
        own = np.array([rating.scores for rating in ratings if rating.set == name])
        result[name] = {
            scale: SetScores(
                Estimate(float(own[:, s].mean()), None if replicates is None else interval(replicates[:, i, s])),
                [int((own[:, s] == score).sum()) for score in SCORES],
            )
            for s, scale in enumerate(SCALES)
        }
    return result


def _differences(study: Study, ratings: Sequence[_Rating]) -> dict[tuple[str, str], dict[str, Estimate]]:
    """Return the differences of means; of pairs, only ratings of one set beside the other count."""
    result = {}
    for pair in itertools.combinations(study.sets, 2):
        own = [rating for rating in ratings if rating.set in pair and rating.against in ("", *pair)]
        if {rating.set for rating in own} != set(pair):
            continue
        values = np.array([rating.scores for rating in own], float)
        groups = [pair.index(rating.set) for rating in own]
        means = [values[np.array(groups) == group].mean(axis=0) for group in (0, 1)]
        replicates = _replicates(study, own, groups, 2)
        result[pair] = {
            scale: Estimate(
                float(means[0][s] - means[1][s]),
                None if replicates is None else interval(replicates[:, 0, s] - replicates[:, 1, s]),
            )
            for s, scale in enumerate(SCALES)
        }
    return result


def _replicates(study: Study, ratings: Sequence[_Rating], groups: Sequence[int], count: int) -> np.ndarray | None:
    """Return bootstrapped means (R, ``count``, scales); None with fewer than two raters or clips.

    The two clips of a pair are drawn together.
    """
    pairs = study.mode == "pairs"
    raters = _numbered([rating.rater for rating in ratings])
    clips = _numbered([("" if pairs else rating.set, rating.key) for rating in ratings])
    if len(set(raters)) < 2 or len(set(clips)) < 2:
        return None
    values = np.array([rating.scores for rating in ratings], float)
    return bootstrap_means(values, np.array(groups), raters, clips, count, study.seed)


def _numbered(values: Sequence[object]) -> np.ndarray:
    numbers = {value: number for number, value in enumerate(sorted(set(values), key=str))}
    return np.array([numbers[value] for value in values], int)


def _agreement(ratings: Sequence[_Rating]) -> dict[str, float | None]:
    units: dict[tuple[str, str, str], list[tuple[int, ...]]] = {}
    for rating in ratings:
        units.setdefault((rating.set, rating.key, rating.against), []).append(rating.scores)
    return {
        scale: krippendorff_alpha([[scores[s] for scores in unit] for unit in units.values()], SCORES)
        for s, scale in enumerate(SCALES)
    }


def _preference(pair: tuple[str, str], votes: Sequence[StoredVote]) -> Preference | None:
    """Return the preferences between the sets of ``pair``; None if they were not shown together."""
    chosen: Counter[str] = Counter()
    for vote in votes:
        sets = [clip.set for clip in vote.question.clips]
        if len(sets) == 2 and set(sets) == set(pair):
            chosen[{"left": sets[0], "right": sets[1]}.get(vote.vote.preference, "")] += 1
    total = chosen.total()
    if not total:
        return None
    first, none, second = chosen[pair[0]], chosen[""], chosen[pair[1]]
    intervals = (wilson_interval(first, total), wilson_interval(none, total), wilson_interval(second, total))
    return Preference(pair, total, first, none, second, intervals)


def _ratings_per_clip(study: Study, ratings: Sequence[_Rating]) -> dict[int, int]:
    counts = Counter((rating.set, rating.key) for rating in ratings)
    shown = {(name, key) for stratum in study.strata for name in stratum.sets for key in stratum.keys}
    return dict(sorted(Counter(counts[clip] for clip in shown).items()))
