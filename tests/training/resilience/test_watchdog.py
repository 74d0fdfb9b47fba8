"""A rank that hangs, in real processes: it is named, all stacks are written, and no process is left."""

import os
import re
import time
from pathlib import Path

import pytest

from mmldm_scale.common.processes import identity
from mmldm_scale.training.resilience.watchdog import EXIT_HUNG, RankReport, diagnosis
from tests.support.run_results import Finished

LIMIT = "training.collective_timeout=4"
LINE = re.compile(r"mmldm: (?P<what>rank.*) since \d+ s at [\d,]+ samples; stacks: (?P<folder>\S+)")
HOST = os.uname().nodename


def hung(run: Finished) -> tuple[str, dict[int, str]]:
    """Return the one diagnosis of a run that hung, and each rank's report; check that no process of it is left."""
    (match,) = filter(None, map(LINE.fullmatch, run.output.splitlines()))
    folder = Path(match["folder"])
    assert folder.parent == run.run / "hangs"
    assert (folder / "diagnosis.txt").read_text().startswith(match["what"])
    assert time.time() - (folder / "diagnosis.txt").stat().st_mtime < 20  # a launcher would wait longer before it kills
    reports = {int(file.stem[-5:]): file.read_text() for file in folder.glob("rank-*.txt")}
    for pid in re.findall(r'(?:pid"?|worker):? (\d+)', "\n".join([match["what"], *reports.values()])):
        deadline = time.monotonic() + 10
        while identity(int(pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert identity(int(pid)) == {}, pid
    return match["what"], reports


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_rank_is_named_and_killed(forks, tmp_path, frozen: int) -> None:
    run = Finished(tmp_path, *forks(2, "train", f"run={tmp_path}", LIMIT, "hang=frozen", f"hang_at={40 + 4 * frozen}"))
    assert run.status == EXIT_HUNG
    what, reports = hung(run)
    assert re.fullmatch(rf"rank {frozen} \(pid \d+ on {HOST}\) shows no sign of life", what)
    assert set(reports) == {1 - frozen}
    assert "in train" in reports[1 - frozen]


@pytest.mark.parametrize(
    ("where", "workers", "what"),
    [
        pytest.param("sample", 0, "waits for its data", id="reading"),
        pytest.param("sample", 1, "waits for its data", id="loader worker"),
        pytest.param("forward", 0, "hangs in a step", id="model"),
    ],
)
def test_a_rank_that_sleeps_is_named_with_all_stacks(forks, tmp_path, where: str, workers: int, what: str) -> None:
    settings = (LIMIT, f"hang={where}", "hang_at=44", f"training.workers={workers}")
    run = Finished(tmp_path, *forks(2, "train", f"run={tmp_path}", *settings))
    assert run.status == EXIT_HUNG
    what_hangs, reports = hung(run)
    assert what_hangs == f"rank 1 (pid {re.search(r'pid.: (.*?),', reports[1])[1]} on {HOST}) {what}"
    assert set(reports) == {0, 1}
    for rank, report in reports.items():
        assert ("in hang" in report or "toy_trainable.py" in report.split("in forward")[0][-80:]) == (rank == 1), report
        assert report.count("loader worker") == workers
        assert "no answer" not in report


def test_a_single_process_reports_its_own_hang(forks, tmp_path) -> None:
    run = Finished(tmp_path, *forks(1, "train", f"run={tmp_path}", LIMIT, "hang=sample", "hang_at=44"))
    assert run.status == EXIT_HUNG
    what_hangs, reports = hung(run)
    assert re.fullmatch(r"rank 0 \(.*\) waits for its data", what_hangs)
    assert "in hang" in reports[0]


def test_a_suspended_job_continues(forks, tmp_path) -> None:
    suspended = ("hang=suspended", "hang_at=44")
    run = Finished(tmp_path, *forks(1, "train", f"run={tmp_path}", "training.collective_timeout=6", *suspended))
    assert run.status == 0, run.output
    assert run.log()[-1]["samples_seen"] == 160
    assert not (tmp_path / "hangs").exists()


def report(rank: int, marks: int, collectives: int, phase: str = "step") -> RankReport:
    return RankReport(rank, 100 + rank, "gpu07", phase, 12_800, marks, collectives, 31.4)


def rank_info(size: int) -> list[dict]:
    return [{"pid": 100 + rank, "host": "gpu07"} for rank in range(size)]


@pytest.mark.parametrize(
    ("reports", "size", "line"),
    [
        (
            [report(0, 5, 7), report(1, 4, 7, "data")],
            2,
            "rank 1 (pid 101 on gpu07) waits for its data since 31 s at 12,800 samples",
        ),
        (
            [report(0, 5, 7), report(1, 5, 6), report(2, 5, 7)],
            3,
            "rank 1 (pid 101 on gpu07) hangs in a step since 31 s at 12,800 samples",
        ),
        (
            [report(0, 5, 7, "saving"), report(1, 5, 7, "saving"), report(2, 5, 7, "saving")],
            3,
            "rank 0 (pid 100 on gpu07) like 2 others hangs while saving since 31 s at 12,800 samples",
        ),
        (
            [report(1, 5, 7)],
            3,
            "ranks 0 (pid 100 on gpu07), 2 (pid 102 on gpu07) show no sign of life since 31 s at 12,800 samples",
        ),
    ],
)
def test_the_diagnosis_names_the_rank_that_is_behind(reports: list[RankReport], size: int, line: str) -> None:
    assert diagnosis({r.rank: r for r in reports}, rank_info(size)) == line


def test_a_diagnosis_lists_at_most_eight_ranks() -> None:
    line = diagnosis({0: report(0, 5, 7)}, rank_info(1024))
    assert line.startswith("ranks 1 (pid 101 on gpu07), 2 ")
    assert "8 (pid 108 on gpu07), 1015 more show no sign of life" in line
