"""Several processes of one command on this node: the same set, heard as one, whatever happens to one of them."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data_tools.launching.launch import Options, add_arguments, command_of, launch
from data_tools.launching.merged_output import MergedOutput
from data_tools.launching.progress import FOLDER, Progress
from data_tools.shard import main
from mmldm_scale.common.errors import UserError

ROOT = Path(__file__).parents[3]
LAUNCH = """
import sys
from pathlib import Path
from data_tools.launching.launch import Options, launch
from mmldm_scale.common.errors import UserError
try:
    sys.exit(launch(sys.argv[2:], "local", int(sys.argv[1]), Options(Path("set"))))
except KeyboardInterrupt:
    sys.exit(130)
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def clips(videos, output, overrides):
    return ["clips", "--input", str(videos), "--output", str(output), *overrides]


def start(jobs, command):
    """Start the launcher as a process of its own, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(jobs), *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def children(pid):
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(happened, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def gone(pid):
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"


@pytest.fixture
def undisturbed(good_videos, overrides, tmp_path):
    assert main([*clips(good_videos, tmp_path / "undisturbed", overrides), "--workers", "0"]) == 0
    return contents(tmp_path / "undisturbed")


def test_processes_make_the_same_set_and_speak_as_one(good_videos, overrides, undisturbed, tmp_path):
    launcher = start(3, clips(good_videos, tmp_path / "set", overrides))
    out, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, err
    assert contents(tmp_path / "set") == undisturbed
    assert out.count("15 clips in 4 shards") == 1
    assert out.count("3 entries found = 3 taken + 0 dropped") == 1
    assert len(out.splitlines()) == 2
    assert "cutting: 100%" in err


def test_one_killed_process_is_reported_and_replaced_by_the_others(good_videos, overrides, tmp_path):
    overrides = [*overrides, "stride=1", "samples_per_shard=1"]
    launcher = start(2, clips(good_videos, tmp_path / "set", overrides))
    wait_for(lambda: list((tmp_path / "set").glob("shard-*.json")))
    os.kill(children(launcher.pid)[0], signal.SIGKILL)
    _, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, err
    assert err.count("process 1 of 2 was killed (SIGKILL)") == 1
    assert main([*clips(good_videos, tmp_path / "undisturbed", overrides), "--workers", "0"]) == 0
    assert contents(tmp_path / "set") == contents(tmp_path / "undisturbed")


def test_if_all_are_killed_the_status_says_so(good_videos, overrides, tmp_path):
    launcher = start(2, clips(good_videos, tmp_path / "set", [*overrides, "stride=1", "samples_per_shard=1"]))
    wait_for(lambda: (tmp_path / "set").exists())
    for child in children(launcher.pid):
        os.kill(child, signal.SIGKILL)
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGKILL
    assert "all processes were killed; run the same command again to resume" in err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_all(good_videos, overrides, tmp_path, number, status):
    launcher = start(2, clips(good_videos, tmp_path / "set", [*overrides, "stride=1", "samples_per_shard=1"]))
    wait_for(lambda: (tmp_path / "set").exists())
    started = children(launcher.pid)
    os.kill(launcher.pid, number)
    launcher.communicate(timeout=60)
    assert launcher.returncode == status
    assert len(started) == 2
    assert all(map(gone, started))


def test_a_killed_launcher_leaves_no_process_behind(make_video, overrides, tmp_path):
    make_video(tmp_path / "videos" / "long.mp4", seconds=30)  # many times the seconds that are waited below
    launcher = start(2, clips(tmp_path / "videos", tmp_path / "set", [*overrides, "stride=1", "samples_per_shard=1"]))
    wait_for(lambda: list((tmp_path / "set").glob("shard-*.json")))
    started = children(launcher.pid)
    launcher.kill()
    launcher.communicate()
    wait_for(lambda: all(map(gone, started)), 1.5)


def test_a_mistake_is_shown_once_and_ends_all(good_videos, overrides, tmp_path):
    launcher = start(3, clips(good_videos, tmp_path / "set", [*overrides, "strid=1"]))
    out, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 2
    assert err.count("unknown key; did you mean 'stride'") == 1
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize(("visible", "expected"), [(None, ["0", "1", "0"]), ("3,GPU-5", ["3", "GPU-5", "3"])])
def test_processes_take_turns_on_the_gpus_that_may_be_used(monkeypatch, visible, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    real, seen = subprocess.Popen, []

    def record(command, env, **options):
        seen.append(env["CUDA_VISIBLE_DEVICES"])
        return real(["true"], env=env, **options)

    monkeypatch.setattr(subprocess, "Popen", record)
    assert launch(["latents"], "local", 3, Options(Path("set"))) == 0
    assert seen == expected


def test_how_many_has_to_be_said(tmp_path):
    for jobs in (None, 0):
        with pytest.raises(UserError, match="--jobs"):
            launch(["clips"], "local", jobs, Options(tmp_path))


def test_the_launchers_flags_are_taken_off_the_command():
    rest = ["clips", "--input", "a b", "--output", "set", "stride=1", "--config", "x.yaml", "--workers", "0"]
    flags = ["--launcher", "slurm", "--jobs=3", "--slurm", "partition=gpu", "--slurm", "hours=2", "--no-wait"]
    assert command_of([*rest[:3], *flags[:2], *rest[3:], *flags[2:]]) == rest
    assert command_of([*rest, "--launch", "slurm"]) == rest  # an abbreviation that argparse accepts


def test_flags_are_parsed():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["--launcher", "local", "--jobs", "2"])
    assert (args.launcher, args.jobs, args.slurm, args.no_wait) == ("local", 2, [], False)


# --- what several processes print and report, merged ------------------------------------------------------------------


def test_lines_are_printed_once_however_they_arrive(capsys):
    merged = MergedOutput()
    for byte in "Straße: nichts da\n".encode():
        merged.receive(0, bytes([byte]))
    merged.receive(1, "Straße: nichts da\nanother\n".encode())
    merged.receive(2, b"no end of line")
    merged.end(2)
    assert capsys.readouterr().err.splitlines() == ["Straße: nichts da", "another", "no end of line"]


def report(file, step, present, own, total=100):
    value = {"step": step, "unit": "clips", "total": total, "present": present, "own": own}
    with file.open("a") as stream:
        stream.write(json.dumps(value) + "\n")


def test_one_bar_adds_up_what_the_processes_finished(tmp_path, capsys):
    merged = MergedOutput(tmp_path)
    report(tmp_path / "a.jsonl", "cutting", 40, 0)  # of a run that was stopped
    report(tmp_path / "b.jsonl", "cutting", 40, 0)
    report(tmp_path / "a.jsonl", "cutting", 40, 5)
    report(tmp_path / "b.jsonl", "cutting", 40, 7)
    with (tmp_path / "b.jsonl").open("a") as stream:
        stream.write('{"step": "cut')  # the rest comes later
    merged.show_progress()
    merged.close()
    assert "cutting:  52%" in capsys.readouterr().err.splitlines()[-1]


def test_the_newest_step_is_shown_and_what_is_done_does_not_decrease(tmp_path, capsys):
    merged = MergedOutput(tmp_path)
    report(tmp_path / "a.jsonl", "probing", 0, 3, total=3)
    report(tmp_path / "a.jsonl", "cutting", 0, 0)
    report(tmp_path / "a.jsonl", "cutting", 60, 50)
    merged.show_progress()
    report(tmp_path / "b.jsonl", "probing", 0, 1, total=3)
    report(tmp_path / "b.jsonl", "cutting", 0, 0)
    merged.close()
    lines = capsys.readouterr().err.splitlines()
    assert any("probing: 100%" in line for line in lines)
    assert "cutting:  60%" in lines[-1]


def test_a_process_reports_instead_of_drawing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with Progress(10, "cutting", "clips") as bar:
        bar.set_present(4)
        bar.update(2)
        assert bar.n == 6
    assert capsys.readouterr().err == ""
    (file,) = tmp_path.glob("*.jsonl")
    last = {"step": "cutting", "unit": "clips", "total": 10, "present": 4, "own": 2}
    assert json.loads(file.read_text().splitlines()[-1]) == last
    file.unlink()
    tmp_path.rmdir()
    with Progress(10, "cutting", "clips") as bar:  # its launcher has ended
        bar.update()
