import json
import re
import sys

import pytest

from mmldm_scale.config import MediaConfig
from mmldm_scale.sampling import progress
from mmldm_scale.sampling.progress import Progress
from mmldm_scale.sampling.sample_files import SampleFiles
from mmldm_scale.sampling.stage_times import FOLDER, StageTimes

BLOCKS = [range(4), range(4, 6)]


@pytest.fixture
def files(tmp_path) -> SampleFiles:
    return SampleFiles(tmp_path, "svg", ".mp4", MediaConfig(), MediaConfig())


def make(files: SampleFiles, *indices: int) -> None:
    for index in indices:
        files.file(index).touch()


def test_a_log_gets_a_line_an_interval_with_what_others_have_made(files, capsys, monkeypatch):
    times = StageTimes()
    with times.measured("decode", 2):
        pass
    make(files, 0)
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(files, BLOCKS, lambda: times) as shown:
        make(files, 2, 5)  # by other tasks, too
        now[0] += 10
        shown.look()
        assert capsys.readouterr().err == ""
        now[0] += 20
        shown.look()
        line = r"svg: 3 of 6 samples, 0\.0667 samples/s, 45 s left; seconds per sample: decode \S+\n"
        assert re.fullmatch(line, capsys.readouterr().err)
        make(files, 1, 3, 4)
    assert re.match(r"svg: 6 of 6 samples, 0\.167 samples/s; seconds", capsys.readouterr().err)


def test_a_terminal_has_a_bar_of_the_whole_job(files, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    make(files, 0, 1, 2)
    with Progress(files, BLOCKS, StageTimes):
        make(files, 3)
    said = capsys.readouterr().err
    assert "3/6" in said
    assert "4/6" in said


def test_processes_that_do_not_speak_show_nothing(files, capsys):
    with Progress(files, BLOCKS, StageTimes, shown=False) as shown:
        shown.look()
    assert capsys.readouterr().err == ""


def test_a_launcher_adds_up_the_times_of_its_processes(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    for rank in (0, 1):
        times = StageTimes.of_process(rank)
        for stage in ("decode", "denoise", "decode"):
            with times.measured(stage, 3):
                pass
    for rank, seconds in ((0, 6.0), (1, 12.0)):
        stored = json.loads((tmp_path / f"{rank}.json").read_text())
        assert [samples for samples, _ in stored.values()] == [3, 6, 0]
        stored["decode"][1] = seconds
        stored["denoise"][1] = 1.5
        (tmp_path / f"{rank}.json").write_text(json.dumps(stored))
    assert str(StageTimes.read(tmp_path)) == "denoise 0.5, decode 1.5"
