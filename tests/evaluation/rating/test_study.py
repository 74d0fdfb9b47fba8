"""``mmldm rate serve``: a study is made once, resumed by the same command, and mistakes are one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mmldm_scale.cli import main
from mmldm_scale.evaluation.rating import study as studies
from mmldm_scale.evaluation.rating.study import Study, Wish
from mmldm_scale.media.encode import write_video
from tests.evaluation.rating.conftest import options, write_clip

NOTHING = Wish(None, None, None, None, {})


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that ``mmldm rate`` ends with."""
    assert main(["rate", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmldm: ")
    assert error.count("\n") == 1
    return error


@pytest.fixture
def study(sets: dict[str, Path], tmp_path: Path) -> Study:
    return studies.create(tmp_path / "study", Wish("pairs", 4, 2, 7, sets))


def test_a_study_is_read_as_it_was_made(study: Study) -> None:
    loaded = studies.load(study.folder)
    assert studies.check(loaded, NOTHING) == study
    assert [stratum.keys for stratum in study.strata] == [("0", "1", "2", "3", "4", "5")]  # numbers: stems differ
    assert studies.token(study) == studies.token(loaded)
    assert len(studies.token(study)) >= 22
    assert (study.folder / studies.TOKEN).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--single"], "--pairs or --single: single, but the study"),
        (["--questions", "5"], "--questions: 5, but the study"),
        (["--attention", "1"], "--attention: 1, but the study"),
        (["--seed", "8"], "--seed: 8, but the study"),
        (["--set", "third={}"], "--set: third, but the study"),
    ],
)
def test_another_configuration_is_refused(study: Study, more, complaint, sets, capsys) -> None:
    folder = sets["first set"]
    line = refusal(["serve", "--study", str(study.folder), *(word.format(folder) for word in more)], capsys)
    assert complaint in line
    assert "was made with" in line


def test_one_folder_is_not_two_sets(sets, tmp_path, capsys) -> None:
    folder = sets["first set"]
    words = ["serve", "--study", str(tmp_path / "study"), "--set", f"a={folder}", "--set", f"b={folder}/."]
    assert "has clips of set a; give each set its own" in refusal(words, capsys)
    assert "--port 70000: must be from 0 to 65535" in refusal([*words, "--port", "70000"], capsys)


def test_samples_of_several_tasks_are_no_set_but_those_of_one_are(sets, tmp_path, capsys) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    for number, clip in enumerate(sorted(sets["first set"].glob("*.mp4"))[:4]):
        shutil.copy(clip, folder / f"{('svg', 'a2v')[number % 2]}_{number:06d}.mp4")
    words = ["serve", "--study", str(tmp_path / "study"), "--single", "--set"]
    records = f"{folder / 'a2v.json'} or {folder / 'svg.json'}"
    line = refusal([*words, f"mine={folder}"], capsys)
    assert line == f"mmldm: --set mine={folder}: contains samples of the tasks a2v, svg; give {records}\n"
    made = studies.create(tmp_path / "study", Wish("single", None, 0, None, {"mine": folder / "svg.json"}))
    assert sorted(made.sets["mine"].clips) == ["svg_000000", "svg_000002"]
    assert studies.check(studies.load(made.folder), Wish(None, None, None, None, {"mine": folder / "svg.json"})) == made


def test_clips_that_were_changed_are_refused_and_moved_ones_found(study: Study, sets, tmp_path, capsys) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(sets["first set"], moved)
    wish = Wish(None, None, None, None, {**sets, "first set": moved})
    assert studies.check(study, wish).file("first set", "2") == moved / "svg_000002.mp4"
    write_clip(moved / "svg_000002.mp4", 5)
    words = ["--study", str(study.folder), *options(wish.sets)]
    assert "svg_000002.mp4: is another clip than when the study was made" in refusal(["serve", *words], capsys)
    (moved / "svg_000002.mp4").unlink()
    assert "svg_000002.mp4: missing; if set first set was moved, give --set" in refusal(["serve", *words], capsys)


def test_mistakes_are_one_line(sets, tmp_path, capsys) -> None:
    serve = ["serve", "--study", str(tmp_path / "new")]
    one = options({"first set": sets["first set"]})
    assert "--set: none given, and" in refusal(serve, capsys)
    assert "must be NAME=FOLDER" in refusal([*serve, "--set", "folder"], capsys)
    assert "there is another set first set" in refusal([*serve, *one, *one], capsys)
    assert "--pairs: needs two or more sets" in refusal([*serve, *one, "--pairs"], capsys)
    assert "no such folder" in refusal([*serve, "--set", "a=nowhere"], capsys)
    assert "holds no .mp4 file" in refusal([*serve, "--set", f"a={tmp_path}"], capsys)
    assert "--questions 7: must be at most 6" in refusal([*serve, *options(sets), "--questions", "7"], capsys)
    assert "--attention -1: must be from 0" in refusal([*serve, *options(sets), "--attention", "-1"], capsys)
    assert "no study: no study.json" in refusal(["report", "--study", str(tmp_path)], capsys)
    assert not (tmp_path / "new").exists()


def test_clips_that_browsers_cannot_play_are_refused(tmp_path, capsys) -> None:
    serve = ["serve", "--study", str(tmp_path / "new"), "--set", f"a={tmp_path}"]
    (tmp_path / "a.mp4").write_bytes(b"no video")
    assert "a.mp4: cannot be read" in refusal(serve, capsys)
    write_video(tmp_path / "a.mp4", np.zeros((4, 32, 32, 3), np.uint8), 10)
    assert "a.mp4: has no sound; clips to rate need both" in refusal(serve, capsys)


def test_a_damaged_study_is_one_line(study: Study, capsys) -> None:
    report = ["report", "--study", str(study.folder)]
    record = json.loads((study.folder / studies.FILE).read_bytes())
    for damaged in ("{", json.dumps({**record, "sets": 3}), json.dumps({**record, "mode": "none"})):
        (study.folder / studies.FILE).write_text(damaged)
        assert "study.json: is damaged" in refusal(report, capsys)
    (study.folder / studies.FILE).write_text(json.dumps({**record, "format": 9}))
    assert "has format 9, this version reads 1" in refusal(report, capsys)


def test_clips_without_a_partner_are_counted(sets, tmp_path) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(sets["second-set"], fewer)
    (fewer / "0003.mp4").unlink()
    study = studies.create(tmp_path / "study", Wish(None, None, 0, None, {**sets, "second-set": fewer}))
    assert (study.mode, study.questions) == ("pairs", 5)
    assert studies.unpaired(study) == {"first set": 1}


def test_equal_stems_are_paired_before_numbers(tmp_path) -> None:
    """Of names such as AudioSet's the number at the end is a time."""
    sets = {"a": ("dog_000030", "cat_000010"), "b": ("dog_000030", "cow_000010")}
    for name, stems in sets.items():
        (tmp_path / name).mkdir()
        for stem in stems:
            write_clip(tmp_path / name / f"{stem}.mp4", 1)
    study = studies.create(tmp_path / "study", Wish(None, None, 0, None, {name: tmp_path / name for name in sets}))
    assert study.strata[0].keys == ("dog_000030",)
