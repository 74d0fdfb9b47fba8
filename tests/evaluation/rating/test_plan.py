"""Which questions raters are asked: balanced, and the same for the same study and rater."""

from collections import Counter
from pathlib import Path

import pytest

from mmldm_scale.evaluation.rating.plan import NOISE_CLIP, Question, plan
from mmldm_scale.evaluation.rating.study import ClipFile, RatedSet, Study


def make_study(mode: str, sets: int, clips: int, questions: int, checks: int = 0, seed: int = 3) -> Study:
    files = {f"{number}": ClipFile(f"{number}.mp4", "") for number in range(clips)}
    rated = {f"set{number}": RatedSet(Path(), files) for number in range(sets)}
    return Study(Path(), mode, questions, checks, seed, rated)


def about(question: Question) -> tuple[frozenset[str], str]:
    """Return the sets and the key of what is shown, wherever it is."""
    return frozenset(clip.set for clip in question.clips), question.clips[0].key


@pytest.mark.parametrize(
    ("mode", "sets", "clips", "questions"),
    [("pairs", 2, 7, 5), ("pairs", 3, 8, 10), ("single", 2, 10, 4), ("single", 3, 5, 15), ("pairs", 2, 4, 4)],
)
def test_questions_are_balanced(mode: str, sets: int, clips: int, questions: int) -> None:
    study = make_study(mode, sets, clips, questions)
    strata = [frozenset(stratum.sets) for stratum in study.strata]
    asked: Counter = Counter()
    for rater in range(12):
        own = plan(study, rater)
        assert len(own) == len({about(question) for question in own}) == questions  # nothing twice
        share = Counter(about(question)[0] for question in own)
        assert {share[stratum] for stratum in strata} <= {questions // len(strata), -(-questions // len(strata))}
        asked.update(about(question) for question in own)
        for stratum in strata:
            left = Counter(question.clips[0].set for question in own if about(question)[0] == stratum)
            assert mode == "single" or max(left.values()) - min(left[name] for name in stratum) <= 2
        counts = [asked[stratum, str(key)] for stratum in strata for key in range(clips)]
        assert max(counts) - min(counts) <= 1 + (questions % len(strata) > 0)


def test_every_pair_is_shown_equally_often_either_way_round() -> None:
    study = make_study("pairs", 2, 6, 4)
    ways = Counter(question.clips for rater in range(6) for question in plan(study, rater))  # 24 are 4 passes
    assert len(ways) == 12
    assert set(ways.values()) == {2}


def test_two_raters_see_the_sets_at_mirrored_places() -> None:
    study = make_study("single", 2, 20, 10)
    first, second = ([question.clips[0].set for question in plan(study, rater)] for rater in (4, 5))
    assert first == second[::-1]
    assert first != sorted(first)


def test_the_papers_design_has_every_clip_rated_twice() -> None:
    """Of two sets of 50 clips, ten raters who rate 20 clips each."""
    study = make_study("single", 2, 50, 20)
    assert set(Counter(about(question) for rater in range(10) for question in plan(study, rater)).values()) == {2}


def test_a_plan_depends_on_seed_and_rater_alone() -> None:
    studies = [make_study("pairs", 2, 9, 6, checks=2, seed=seed) for seed in (3, 3, 4)]
    assert plan(studies[0], 7) == plan(studies[1], 7)
    assert plan(studies[0], 7) != plan(studies[0], 8)
    assert plan(studies[0], 7) != plan(studies[2], 7)


def test_attention_checks_are_spread_over_the_session_and_change_no_question() -> None:
    study, without = make_study("pairs", 2, 40, 30, checks=3), make_study("pairs", 2, 40, 30)
    for rater in range(8):
        own = plan(study, rater)
        assert [question for question in own if not question.check] == list(plan(without, rater))
        places = [place for place, question in enumerate(own) if question.check]
        assert [place * 3 // (len(own) + 1) for place in places] == [0, 1, 2]
        checks = [own[place] for place in places]
        assert [question.check.kind for question in checks if question.check] == ["instruction", "noise", "instruction"]
        assert [NOISE_CLIP in question.clips for question in checks] == [False, True, False]
