"""The first pass as a user runs it: whatever lies in the folder is a row, and a killed run goes on where it stopped."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_tools.config import MeasureConfig
from data_tools.filters.table import MEASURES, SCHEMA
from data_tools.sources.folder import FolderSource
from data_tools.sources.video import Video
from data_tools.stages import measure as module
from data_tools.stages.measure import Summary, measure, read_table
from mmldm_scale.common.atomic_files import TEMPORARY_SUFFIX
from mmldm_scale.common.errors import UserError

CONFIG = MeasureConfig(rows_per_part=2)


def run(folder: Path, output: Path, config: MeasureConfig = CONFIG, workers: int = 0) -> Summary:
    return measure(FolderSource(config.source, folder), output, config, workers, 60.0)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Listed:
    """A source of given videos."""

    def __init__(self, folder: Path, videos: list[Video]) -> None:
        self.folder, self.sound_folder, self._videos = folder, None, videos

    def videos(self) -> list[Video]:
        return self._videos


def test_every_file_is_a_row_and_every_fault_has_its_reason(mixed_videos, tmp_path):
    summary = run(mixed_videos, tmp_path / "m")
    rows = {row["path"]: row for row in read_table(tmp_path / "m").to_pylist()}
    assert len(rows) == summary.rows == 9
    assert {path: row["reason"] for path, row in rows.items() if row["reason"]} == {
        "bad/dangling.mp4": "missing_file",
        "bad/no_sound.mp4": "no_audio_stream",
        "bad/short.mp4": "too_short",
        "bad/text.mp4": "not_media",
        "bad/truncated.mp4": "truncated",
        "bad/zero.mp4": "empty_file",
    }
    assert summary.reasons == {
        "empty_file": 1, "missing_file": 1, "no_audio_stream": 1, "not_media": 1, "too_short": 1, "truncated": 1,
    }  # fmt: skip
    assert summary.measured + sum(summary.reasons.values()) == summary.rows
    good = rows["good/ünïcödé 视频.MP4"]
    assert all(good[name] is not None for name in MEASURES if not name.startswith("onset"))
    assert (good["width"], good["height"], good["labels"], good["seconds"]) == (32, 32, ["good"], 1.2)
    assert good["fps"] == pytest.approx(10.0)
    mute = rows["bad/no_sound.mp4"]
    assert (mute["has_video"], mute["has_audio"], mute["width"], mute["loudness"]) == (True, False, 32, None)
    assert rows["bad/silent.mp4"]["silent_fraction"] == 1.0
    assert read_table(tmp_path / "m").schema == SCHEMA


def test_processes_give_the_same_table(good_videos, tmp_path):
    run(good_videos, tmp_path / "one")
    run(good_videos, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_stretches_and_faults_of_the_source(good_videos, tmp_path):
    videos = [
        Video("cat/a.mp4", start=0.2, end=0.9, origin="a"),
        Video("cat/a.mp4", start=100.0, end=101.0, maybe_trimmed=True, origin="b"),  # the file is the stretch
        Video("line 7", reason="bad_row", detail="2 columns"),
        Video("line 8", reason="bad_row", detail="3 columns"),
        Video(os.fsdecode(b"na\xefve.mp4")),
    ]
    summary = measure(Listed(good_videos, videos), tmp_path / "m", CONFIG, 0, 60.0)
    table = read_table(tmp_path / "m")
    assert table["duration"].to_pylist() == pytest.approx([0.7, 1.2, None, None, None])
    assert table["reason"].to_pylist() == ["", "", "bad_row", "bad_row", "bad_name"]
    assert table["detail"][3].as_py() == "3 columns"
    assert table["path"][4].as_py() == "na\\udcefve.mp4"
    assert summary.reasons == {"bad_row": 2, "bad_name": 1}


def test_only_what_is_missing_is_measured_again(good_videos, tmp_path, monkeypatch):
    run(good_videos, tmp_path / "m")
    whole = contents(tmp_path / "m")
    (tmp_path / "m" / "part-000001.parquet").write_bytes(whole["part-000001.parquet"][:-9])
    (tmp_path / "m" / f"part-000001.parquet.1234{TEMPORARY_SUFFIX}").write_bytes(b"half")
    seen: list[str] = []
    examine = module.CandidateMeasurer.__call__
    monkeypatch.setattr(
        module.CandidateMeasurer, "__call__", lambda self, video: seen.append(video.path) or examine(self, video)
    )
    run(good_videos, tmp_path / "m")
    assert seen == ["dog/a.mp4"]
    assert contents(tmp_path / "m") == whole


def test_other_input_or_configuration_is_refused(good_videos, make_video, tmp_path):
    make_video(tmp_path / "in" / "a.mp4")
    run(tmp_path / "in", tmp_path / "m")
    with pytest.raises(UserError, match="silence_db: begun with -60.0, now -50"):
        run(tmp_path / "in", tmp_path / "m", MeasureConfig(rows_per_part=2, silence_db=-50))
    make_video(tmp_path / "in" / "b.mp4")
    with pytest.raises(UserError, match="other videos"):
        run(tmp_path / "in", tmp_path / "m")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="thesis"):
        run(tmp_path / "in", tmp_path / "other")


def test_an_unfinished_table_is_named(good_videos, tmp_path):
    with pytest.raises(UserError, match="holds no measures"):
        read_table(tmp_path)
    run(good_videos, tmp_path / "m")
    (tmp_path / "m" / "part-000000.parquet").unlink()
    with pytest.raises(UserError, match=r"1 of 2 parts.*part-000000"):
        read_table(tmp_path / "m")


def test_a_decoder_that_dies_is_a_row(good_videos, tmp_path, monkeypatch):
    """each() hands its fault on; here it is made without the process."""

    def dying(function, items, workers, timeout):
        for video in items:
            fault = module.MediaError("decoder_crashed", "its process died of SIGSEGV")
            yield fault if video.path == "cat/b.mp4" else function(video)

    monkeypatch.setattr(module.process_pool, "map", dying)
    summary = run(good_videos, tmp_path / "m")
    assert summary.reasons == {"decoder_crashed": 1}
    row = read_table(tmp_path / "m").to_pylist()[1]
    assert (row["reason"], row["detail"], row["width"]) == ("decoder_crashed", "its process died of SIGSEGV", None)


def test_killed_and_shared_runs_end_with_the_same_table(good_videos, tmp_path):
    """One process is killed after its first part; of two others that share the folder, each does some or none."""
    run(good_videos, tmp_path / "alone", MeasureConfig(rows_per_part=1))
    context = multiprocessing.get_context("spawn")

    def start() -> multiprocessing.Process:
        arguments = (good_videos, tmp_path / "m", MeasureConfig(rows_per_part=1))
        process = context.Process(target=run, args=arguments)
        process.start()
        return process

    first = start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "m" / "part-000000.parquet").exists():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    others = [start(), start()]
    for process in others:
        process.join(120)
        assert process.exitcode == 0
    assert contents(tmp_path / "m") == contents(tmp_path / "alone")
    assert pq.read_table(tmp_path / "m" / "part-000002.parquet").num_rows == 1
