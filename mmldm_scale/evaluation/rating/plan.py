"""Which questions a rater is asked, in which order: :func:`plan`, a pure function of the study and the rater's number.

Raters are dealt the questions of a stratum (a set, or a pair of sets) from one endless row of passes, each of which is
all its questions once, shuffled. So

- every question has been asked equally often, give or take one, whichever number of raters there was;
- no rater is asked the same twice; each is asked as many questions of each stratum, give or take one;
- the two sides of a pair alternate along the row, so that a rater sees each set equally often on the left, give or take
  two; from one pass to the next every pair changes sides;
- of two consecutive raters, the second sees the strata in the reverse order of the first, so that no set comes earlier
  than another on average.

Attention checks come at a random place in each of as many equal parts of the session.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Literal

import numpy as np

from mmldm_scale.common.rng import generator
from mmldm_scale.evaluation.rating.study import Stratum, Study

CheckKind = Literal["instruction", "noise"]
SCORES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class ShownClip:
    """A clip on the page: its set and key; both are "" of the clip of noise."""

    set: str
    key: str


NOISE_CLIP = ShownClip("", "")


@dataclass(frozen=True)
class Check:
    """An attention check: all scores must be ``score`` ("instruction"), or the clip of noise be rated low ("noise")."""

    kind: CheckKind
    score: int = 0


@dataclass(frozen=True)
class Question:
    """One page: the clips on it, the left one first, and what it checks; None: it is a question of the study."""

    clips: tuple[ShownClip, ...]
    check: Check | None = None


def plan(study: Study, rater: int) -> tuple[Question, ...]:
    """Return the questions of rater number ``rater`` (0, 1, 2, …), attention checks among them, in order."""
    strata = study.strata
    questions: list[Question] = []
    for number, stratum in enumerate(strata):
        sizes = [_share(study.questions, len(strata), number, earlier) for earlier in range(rater + 1)]
        dealt = _deal(len(stratum.keys), sizes, study.seed, f"rating/{'/'.join(stratum.sets)}")
        questions += [_question(stratum, item, swapped) for item, swapped in dealt]
    places = generator(study.seed, "rating/order", rater // 2).permutation(len(questions))
    if rater % 2:
        places = len(questions) - 1 - places
    ordered = [questions[i] for i in np.argsort(places)]
    return _with_checks(ordered, study, rater)


def _share(questions: int, strata: int, number: int, rater: int) -> int:
    """Return how many of a rater's questions are of stratum ``number``; what is left over goes around."""
    even, rest = divmod(questions, strata)
    extra = {turn % strata for turn in range(rater * rest, (rater + 1) * rest)}
    return even + (number in extra)


def _deal(pool: int, sizes: Sequence[int], seed: int, stream: str) -> list[tuple[int, bool]]:
    """Return the items, and whether their sides are swapped, for the last of the raters who get ``sizes`` items."""
    first_sides = generator(seed, f"{stream}/sides").permutation(pool) < pool // 2
    row: list[tuple[int, bool]] = []
    dealt: list[tuple[int, bool]] = []
    passes = 0
    for size in sizes:
        if len(row) < size:
            swapped = first_sides ^ (passes % 2 == 1)
            row += _pass(generator(seed, stream, passes).permutation(pool), swapped, {item for item, _ in row})
            passes += 1
        dealt, row = row[:size], row[size:]
    return dealt


def _pass(order: np.ndarray, swapped: np.ndarray, waiting: Collection[int]) -> list[tuple[int, bool]]:
    """Return all items in ``order``, alternating sides; those still ``waiting`` in the row come last.

    A rater who is dealt the end of one pass and the beginning of the next is thus not dealt an item twice.
    """
    parts = [[i for i in order.tolist() if i not in waiting], [i for i in order.tolist() if i in waiting]]
    return [(item, bool(swapped[item])) for part in parts for item in _alternating(part, swapped)]


def _alternating(items: Sequence[int], swapped: np.ndarray) -> list[int]:
    """Return ``items`` with those swapped and not swapped in turns, each kind in its order; the larger kind begins."""
    kinds = [[i for i in items if swapped[i] == kind] for kind in (False, True)]
    if items and (len(kinds[1]), swapped[items[0]]) > (len(kinds[0]), False):
        kinds.reverse()
    return [item for item in chain(*zip_longest(*kinds)) if item is not None]


def _question(stratum: Stratum, item: int, swapped: bool) -> Question:
    sets = reversed(stratum.sets) if swapped else stratum.sets
    return Question(tuple(ShownClip(name, stratum.keys[item]) for name in sets))


def _with_checks(questions: Sequence[Question], study: Study, rater: int) -> tuple[Question, ...]:
    """Return ``questions`` with the rater's attention checks among them; the two kinds take turns."""
    draw = generator(study.seed, "rating/checks", rater)
    result = list(questions)
    for number in reversed(range(study.checks)):  # from the end, so that earlier places stay what they are
        low, high = (len(questions) * part // study.checks for part in (number, number + 1))
        result.insert(int(draw.integers(low, max(high, low + 1))) + 1, _check(study, number, draw))
    return tuple(result)


def _check(study: Study, number: int, draw: np.random.Generator) -> Question:
    strata = study.strata
    stratum = strata[int(draw.integers(len(strata)))]
    clips = _question(stratum, int(draw.integers(len(stratum.keys))), bool(draw.integers(2))).clips
    score, place = int(draw.integers(1, len(SCORES) + 1)), int(draw.integers(len(clips)))
    if number % 2 == 0:
        return Question(clips, Check("instruction", score))
    return Question((*clips[:place], NOISE_CLIP, *clips[place + 1 :]), Check("noise"))
