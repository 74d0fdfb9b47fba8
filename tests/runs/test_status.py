"""What ``mmldm status`` prints of complete runs, damaged runs and folders that are no runs."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from mmldm_scale.cli import main
from mmldm_scale.common.leases import Leases
from mmldm_scale.runs import launches, status
from mmldm_scale.runs.summary import read_summary

CONFIG = """\
trainable: dit
diffusion: {steps: 1000}
model: {depth: 12, width: 768}
shards: [data/latents]
training: {total_samples: 1000, global_batch: 10, precision: bf16, zero_stage: 1}
"""


def write_run(folder: Path, until: int = 500, total: int = 1000, ago: float = 0.0) -> Path:
    """Write what a run leaves that has logged every 10 samples, a second each; its loss falls from 1 by 0.001 each."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    end = time.time() - ago
    records = [
        {"samples_seen": n, "time": end - until / 10 + n / 10, "time_of_start": 0.0, "loss": 1 - n / 1000}
        | {"loss/audio": 2.0, "speed/mfu": 0.381, "speed/goodput": 0.934, "speed/progress": n / total}
        for n in range(10, until + 1, 10)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for samples in [samples for samples in (100, 400) if samples <= until]:
        checkpoint = folder / f"checkpoints/step-{samples:012d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text(json.dumps({"files": {"a": [3_000_000_000, "x"]}}))
    (folder / "checkpoints/step-000000000500.tmp").mkdir(parents=True)
    (folder / "starts.jsonl").write_text('{"job": "7", "time": "noon"}\n{"job": "7", "time": "one"}\n')
    (folder / "hangs/then").mkdir(parents=True)
    (folder / "hangs/then/diagnosis.txt").write_text("rank 3 hangs\n")
    return folder


def page(run: Path) -> str:
    return "\n".join(status.page(read_summary(run)))


def test_a_running_run_is_summarised(tmp_path, capsys) -> None:
    run = write_run(tmp_path / "run")
    with Leases(run, job="7") as leases:
        leases.take("run")
        assert main(["status", str(run)]) == 0
    output = capsys.readouterr().out
    assert "run: dit, 12 × 768, batch 10, bf16, ZeRO-1, on data/latents\n" in output
    assert "500 of 1,000 samples (50.0%), 10.0/s, 50 s left" in output
    assert f"running, process {os.getpid()} on " in output
    assert ", SLURM job 7, last record " in output
    before = (1 - 0.355) / 1 + 0.0  # the mean of 310 to 400 samples
    loss = f"0.5000 ({(1 - 0.455) / before - 1:+.1%}), audio 2.0000 (+0.0%), over 100 samples (means of 10 records)"
    assert loss in output
    assert "MFU 38.1%, goodput 93.4%" in output
    assert "last at 400 (0 s ago, 3.00 GB); 2 kept (100 400), 6.00 GB" in output
    assert "2 by SLURM, the last one (job 7)" in output
    assert "1, the last: rank 3 hangs" in output


def test_the_state_follows_from_the_lock_and_the_last_record(tmp_path) -> None:
    run = write_run(tmp_path / "run", ago=300)
    assert "stopped, last record 5 min 0 s ago" in page(run)
    with Leases(run) as leases:
        leases.take("run")
        assert "silent, process" in page(run)  # it logged every second
        lease = json.loads((run / "leases/run").read_text())
        (run / "leases/run").write_text(json.dumps(lease | {"pid": 1 << 22}))
        assert "stopped, process 4194304 on" in page(run)
        (run / "leases/run").write_text(json.dumps(lease | {"host": "elsewhere"}))
        assert "silent, process" in page(run)
        os.utime(run / "leases/run", (0, 0))
        assert "elsewhere died and left its lock" in page(run)
    assert "finished" in page(write_run(tmp_path / "whole", until=1000))
    saved = write_run(tmp_path / "saved", until=400)  # and 350 at the last record
    (saved / "log.jsonl").write_text("".join((saved / "log.jsonl").read_text().splitlines(keepends=True)[:35]))
    assert "400 of 1,000 samples (40.0%)" in page(saved)
    assert "100.0%" in page(write_run(tmp_path / "shorter", until=200, total=200))  # than its config.yaml says


@pytest.mark.parametrize(
    ("until", "loss"),
    [
        (90, "0.9100, audio 2.0000 (9 records so far; a trend takes 10)"),
        (10, "0.9900, audio 2.0000 (1 record so far; a trend takes 10)"),
        (100, f"0.9000 ({0.92 / 0.97 - 1:+.1%}), audio 2.0000 (+0.0%), over 50 samples (means of 5 records)"),
    ],
)
def test_a_trend_takes_ten_records(until: int, loss: str, tmp_path: Path) -> None:
    assert f"  loss         {loss}\n" in page(write_run(tmp_path / "run", until))


def test_validation_is_shown_with_its_own_trend(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "runs/a")
    write_run(tmp_path / "runs/b")
    lines = (run / "log.jsonl").read_text().splitlines()
    for number in range(4, len(lines), 5):  # each 50 samples
        lines[number] = json.dumps(json.loads(lines[number]) | {"validation/loss": 2.0 + number % 10})
    (run / "log.jsonl").write_text("\n".join(lines) + "\n")
    assert "  validation   11.0000 (+12.5%), over 250 samples (means of 5 records)" in page(run)
    assert main(["status", str(tmp_path / "runs")]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert first[head.index("validation") :].split()[0] == "11.0000"
    assert second[head.index("validation") : head.index("MFU")].strip() == ""


class Queued(NamedTuple):
    state: str
    nodes: str = ""
    reason: str = "None"


def states(folder: Path, queue: dict[str, Queued] | None, capsys) -> str:
    """Return what is printed of the runs below ``folder`` while SLURM's queue is ``queue``."""
    asked: list[str] = []
    status.run(argparse.Namespace(runs=[folder]), lambda jobs: asked.extend(jobs) or queue)
    return capsys.readouterr().out


def test_a_launched_run_is_known_before_its_job_begins(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run/launch-2"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    launches.write(folder, {"": "17"})
    out = states(tmp_path / "run", None, capsys)
    assert f"{tmp_path}/run: dit, 12 × 768, batch 10" in out
    assert f"submitted, SLURM job 17, submitted 0 s ago; its log is in {folder}, nothing logged or saved yet" in out
    out = states(tmp_path, {"17": Queued("PENDING", reason="Resources")}, capsys)
    assert "waiting, SLURM job 17 is PENDING (Resources), submitted 0 s ago\n" in out
    assert "starting, SLURM job 17 is RUNNING on n[1-2], submitted" in states(
        tmp_path, {"17": Queued("RUNNING", "n[1-2]")}, capsys
    )
    out = states(tmp_path, {}, capsys)
    assert "not started, SLURM job 17, submitted 0 s ago and is not in the queue any more; its log is in " in out


def test_the_runs_of_a_sweep_are_known_before_they_begin(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "runs/sweep/launch-1"
    (folder / "code").mkdir(parents=True)
    launches.write(folder, {"seed=0": "18_0", "seed=1": "18_1", "../x": "18_2", "..": "18_3"})
    write_run(tmp_path / "runs/sweep/seed=0")
    (tmp_path / "runs/sweep/seed=0/starts.jsonl").write_text('{"job": "18_0"}\n')
    queue = {"18_0": Queued("PENDING", reason="BeginTime"), "18_1": Queued("PENDING", reason="Priority")}
    _, *lines = states(tmp_path / "runs", queue, capsys).splitlines()
    assert [line.split()[:3] for line in lines] == [
        [f"{tmp_path}/runs/sweep/seed=0", "waiting", "500"],  # was requeued
        [f"{tmp_path}/runs/sweep/seed=1", "waiting", "0"],
    ]
    assert "waiting, SLURM job 18_1 is PENDING (Priority)" in states(tmp_path / "runs/sweep/seed=1", queue, capsys)


def test_a_refused_start_is_not_started(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(CONFIG)
    assert "  state        not started, nothing logged or saved yet\n" in page(tmp_path / "run")


@pytest.mark.parametrize(
    "command",
    [
        ["mmldm_scale.cli", "train", "dit", "shards=x", "--print-config"],
        ["data_tools.shard", "clips", "--input", "x", "--output", "y", "--print-config"],
    ],
)
def test_a_reader_that_is_gone_is_no_traceback(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", *command], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_several_runs_get_a_line_each(tmp_path, capsys) -> None:
    write_run(tmp_path / "runs/a")
    write_run(tmp_path / "runs/sweep/b", until=1000)
    assert main(["status", str(tmp_path / "runs"), str(tmp_path / "runs/a")]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("run ")
    assert [line.split()[0].rpartition("/")[2] for line in lines] == ["a", "b", "a"]
    assert "stopped   500      50.0%" in lines[0]
    assert "finished  1,000    100.0%" in lines[1]


def test_a_folder_that_is_no_run_is_an_error_in_one_line(tmp_path, capsys) -> None:
    assert main(["status", str(tmp_path), str(write_run(tmp_path.parent / f"{tmp_path.name}-run"))]) == 2
    output = capsys.readouterr()
    assert f"mmldm: {tmp_path}: is no run and contains none" in output.err
    assert "500 of 1,000" in output.out
    (tmp_path / "file").touch()
    for name, problem in (("file", "is a file, not a run"), ("nowhere", "no such folder")):
        assert main(["status", str(tmp_path / name)]) == 2
        assert capsys.readouterr().err == f"mmldm: {tmp_path / name}: {problem}\n"


def test_damaged_truncated_and_missing_files_are_skipped(tmp_path) -> None:
    rng, run = Random(0), write_run(tmp_path / "run")
    (run / "leases").mkdir()
    (run / "leases/run").write_text('{"host": "x", "pid": 3}')
    files = [file for file in sorted(run.rglob("*")) if file.is_file()]
    whole = {file: file.read_bytes() for file in files}
    odd = [b"", b"[]", b"null", b"3", b'{"training": 3, "model": [1], "files": {"a": 1}}']
    odd += [b'{"diffusion": 1, "model": {"depth": [1]}, "shards": 1}', b"\xff\x00", b"{" * 99_999]
    for file in files:
        half = whole[file][: len(whole[file]) // 2]
        flipped = bytes(byte ^ (rng.random() < 0.02) << rng.randrange(8) for byte in whole[file])
        for content in (*odd, half, flipped):
            file.write_bytes(content)
            assert page(run)
        file.unlink()
        assert page(run)
        file.mkdir()
        assert page(run)
        file.rmdir()
        file.write_bytes(whole[file])


def test_it_imports_nothing_slow(tmp_path) -> None:
    run = write_run(tmp_path / "run")
    program = (
        "import sys; from mmldm_scale.cli import main; main(['status', sys.argv[1]]); "
        "sys.exit(' '.join({'torch', 'numpy', 'deepspeed', 'tensorboard'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program, run], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_of_an_older_version_does_not_say_what_it_trains(tmp_path) -> None:
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text(CONFIG.replace("trainable: dit\n", ""))
    assert "run: trainable unknown (config.yaml of an older version), 12 × 768, batch 10" in page(run)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (61, "1 min 1 s"), (3_660, "1 h 1 min"), (180_000, "2 d 2 h"), (float("inf"), "0 s")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert status._duration(seconds) == text
