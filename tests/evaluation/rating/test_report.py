"""``mmldm rate report``: figures of votes that a test made, computed again; counts that add up."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mmldm_scale.cli import main
from mmldm_scale.evaluation.rating import study as studies
from mmldm_scale.evaluation.rating.plan import Question, plan
from mmldm_scale.evaluation.rating.store import SCALES, Vote, VoteStore
from mmldm_scale.evaluation.rating.study import Study, Wish

RATERS, INATTENTIVE, UNFINISHED = 8, 3, 6
LEVELS = {"first set": 4, "second-set": 2}


def honest(question: Question, rater: int, number: int) -> Vote:
    """Return the vote of a rater who passes checks, prefers the first set in two of three pairs, and is no machine."""
    draw = np.random.default_rng([rater, number])
    if question.check and question.check.kind == "instruction":
        return Vote([dict.fromkeys(SCALES, question.check.score)] * len(question.clips))
    levels = [LEVELS.get(clip.set, 1) for clip in question.clips]
    scores = [{scale: int(level + draw.integers(0, 2)) for scale in SCALES} for level in levels]
    if len(question.clips) == 1:
        return Vote(scores)
    preferred = ("left", "right")[levels.index(4)] if not question.check else "left"
    return Vote(scores, preferred if number % 3 else "none", played=number > 0, seconds=10.0 + number)


def inattentive(question: Question, number: int) -> Vote:
    """Return the vote of a rater who reads nothing and fails every check."""
    score = 1 + number % 5
    if question.check:
        score = question.check.score % 5 + 1 if question.check.kind == "instruction" else 5
    return Vote([dict.fromkeys(SCALES, score)] * len(question.clips), "none" if len(question.clips) > 1 else "")


def fill(study: Study) -> None:
    """Let raters vote: one fails all checks, one stops after two pages, one only begins."""
    with VoteStore(study.folder) as votes:
        for rater in range(RATERS):
            assert votes.add_rater(f"key-of-rater-{rater}") == rater
            pages = list(enumerate(plan(study, rater)))
            for number, question in pages[: 2 if rater == UNFINISHED else 0 if rater == RATERS - 1 else None]:
                vote = inattentive(question, number) if rater == INATTENTIVE else honest(question, rater, number)
                assert votes.save(rater, number, question, vote)
        changed = plan(study, 0)[0]
        vote = honest(changed, 0, 0)
        other = Vote([{"audio": 1, "video": 5, "match": 1}] * len(changed.clips), vote.preference)
        assert votes.save(0, 0, changed, other)
        assert votes.save(0, 0, changed, vote)


@pytest.fixture(scope="module")
def reports(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Study, dict]]:
    """A study of each mode and its report, which is in the folder ``out`` of the study."""
    result = {}
    for mode in ("pairs", "single"):
        folder = tmp_path_factory.mktemp("studies") / mode
        study = studies.create(folder, Wish(mode, 6, 2, 1, sets))
        fill(study)
        assert main(["rate", "report", "--study", str(folder), "--output", str(folder / "out")]) == 0
        result[mode] = study, json.loads((folder / "out/report.json").read_bytes())
    return result


def expected(study: Study, raters: Sequence[int]) -> dict[str, list[int]]:
    """Return the scores of audio quality that each set has from ``raters`` who are honest."""
    result: dict[str, list[int]] = {name: [] for name in study.sets}
    for rater in raters:
        for number, question in list(enumerate(plan(study, rater)))[: 2 if rater == UNFINISHED else None]:
            if not question.check:
                for clip, scores in zip(question.clips, honest(question, rater, number).scores, strict=True):
                    result[clip.set].append(scores["audio"])
    return result


@pytest.mark.parametrize("mode", ["pairs", "single"])
def test_the_report_adds_up(reports, sets, mode: str) -> None:
    study, report = reports[mode]
    counts = report["counts"]
    assert (counts["started"], counts["voted"], counts["finished"], counts["excluded"]) == (8, 7, 6, 1)
    assert counts["votes"] == 6 * 8 + 2
    assert counts["votes"] == counts["counted"] + counts["excluded_votes"] + counts["on_checks"]
    assert counts["counted"] == report["attentive"]["votes"]
    assert counts["counted"] + counts["excluded_votes"] == report["everybody"]["votes"]
    assert counts["changed"] == 1
    assert [rater["rater"] for rater in report["raters"] if rater["excluded"]] == [INATTENTIVE]
    shown = 2 if mode == "pairs" else 1
    for part in ("attentive", "everybody"):
        ratings = sum(sum(scores["audio"]["counts"]) for scores in report[part]["scores"].values())
        assert ratings == shown * report[part]["votes"]
        spread = {int(times): clips for times, clips in report[part]["ratings_per_clip"].items()}
        assert sum(spread.values()) == 12
        assert sum(times * clips for times, clips in spread.items()) == ratings
    for name, scores in expected(study, [r for r in range(RATERS - 1) if r != INATTENTIVE]).items():
        audio = report["attentive"]["scores"][name]["audio"]
        assert audio["counts"] == [scores.count(score) for score in range(1, 6)]
        assert audio["mean"]["value"] == pytest.approx(np.mean(scores))
        low, high = audio["mean"]["interval"]
        assert low <= audio["mean"]["value"] <= high
        assert low < high
    ((difference),) = report["attentive"]["differences"]
    means = [report["attentive"]["scores"][name]["video"]["mean"]["value"] for name in sets]
    assert difference["sets"] == list(sets)
    assert difference["scales"]["video"]["value"] == pytest.approx(means[0] - means[1])
    assert difference["scales"]["video"]["interval"][0] > 1
    assert 0.3 < report["attentive"]["agreement"]["match"] < 1


def test_preferences_are_those_of_the_sets_not_of_the_sides(reports, sets) -> None:
    study, report = reports["pairs"]
    (preference,) = report["attentive"]["preferences"]
    assert preference["sets"] == list(sets)
    asked = [
        number
        for rater in range(RATERS - 1)
        if rater != INATTENTIVE
        for number, question in list(enumerate(plan(study, rater)))[: 2 if rater == UNFINISHED else None]
        if not question.check
    ]
    undecided = sum(number % 3 == 0 for number in asked)
    assert (preference["first"], preference["none"], preference["second"]) == (len(asked) - undecided, undecided, 0)
    assert preference["votes"] == len(asked)


def test_all_formats_are_written_twice_the_same_and_hold_both_figures(reports, capsys) -> None:
    folder = reports["pairs"][0].folder
    out = folder / "out"
    contents = {file.name: file.read_text() for file in out.iterdir()}
    assert set(contents) == {"report.json", "report.md", "report.html"}
    for name in ("report.md", "report.html"):
        assert all(text in contents[name] for text in ("Without the excluded raters", "All raters", "excluded"))
        assert "50 votes: " in contents[name]
    assert main(["rate", "report", "--study", str(folder), "--output", str(out)]) == 0
    assert contents["report.md"] in capsys.readouterr().out
    assert contents == {file.name: file.read_text() for file in out.iterdir()}


def test_a_study_without_votes_is_one_line(sets, tmp_path, capsys) -> None:
    studies.create(tmp_path / "study", Wish(None, None, None, None, sets))
    assert main(["rate", "report", "--study", str(tmp_path / "study")]) == 2
    assert "no votes yet; 0 raters have begun" in capsys.readouterr().err
