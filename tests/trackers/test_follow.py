"""``mmldm follow``: a tracker gets every record and every medium of a run once, whatever happens meanwhile."""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from mmldm_scale.cli import main
from mmldm_scale.common.errors import Outage
from mmldm_scale.common.leases import Leases
from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.clip import Clip
from mmldm_scale.runs.log_reader import LogReader
from mmldm_scale.runs.media_log import show
from mmldm_scale.trackers import follow
from mmldm_scale.trackers.table import TRACKERS
from mmldm_scale.training.monitoring.logger import Logger
from tests.support.fake_tracker import FAULTS, RUNS, Stored

TOTAL = 160


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(TRACKERS, "fake", "tests.support.fake_tracker:FakeRun")
    monkeypatch.setattr(follow, "RETRY_EVERY", 0.01)
    yield
    RUNS.clear()
    FAULTS.clear()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "dit"
    folder.mkdir()
    (folder / "config.yaml").write_text(f"trainable: dit\ntraining: {{total_samples: {TOTAL}}}\n")
    return folder


def train(run: Path, start: int, end: int) -> None:
    """Log as a training does that begins or resumes at ``start``, with a record after each 16 samples."""
    logger = Logger(run, start, TOTAL)
    with contextlib.redirect_stderr(io.StringIO()):  # the training's own lines
        for seen in range(start + 16, end + 1, 16):
            logger.scalars(seen, {"loss": 1 / seen})
    logger.close()


def send(run: Path, *options: str) -> int:
    return main(["follow", str(run), "--to", "fake", "--once", "--every", "0.01", *options])


def stored() -> Stored:
    (only,) = RUNS.values()
    return only


def steps() -> list[int]:
    return [record.samples_seen for record in stored().records]


def test_everything_is_sent_once_to_one_run(run: Path, capsys) -> None:
    train(run, 0, 64)
    assert send(run, "--project", "videos") == 0
    train(run, 64, TOTAL)
    assert send(run) == 0
    assert send(run) == 0
    assert steps() == list(range(16, TOTAL + 1, 16))
    first, log = stored().records[0], [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert first.values == {"loss": 1 / 16, "speed/goodput": log[0]["speed/goodput"], "speed/progress": 0.1}
    assert first.time == log[0]["time"]
    assert (stored().run.name, stored().run.project) == ("dit", "videos")
    assert stored().run.config == {"trainable": "dit", "training": {"total_samples": TOTAL}}
    assert capsys.readouterr().err.splitlines() == [
        line
        for count in (4, 6, 0)
        for line in (f"{run} is shown at in memory", f"fake: sent {count} records and 0 media of {run}")
    ]


def test_steps_that_a_resumed_training_logs_again_are_sent_once(run: Path, capsys) -> None:
    train(run, 0, 96)
    send(run)
    train(run, 32, 64)
    send(run)
    line = "fake: the training went back to 64 samples; what it logs again up to 96 is not sent again"
    assert line in capsys.readouterr().err.splitlines()
    train(run, 64, TOTAL)
    send(run)
    assert steps() == list(range(16, TOTAL + 1, 16))


def test_an_outage_loses_and_repeats_nothing(run: Path, monkeypatch, capsys) -> None:
    def before() -> None:
        raise Outage("no route to host")

    monkeypatch.setattr(follow, "BATCH", 3)
    train(run, 0, TOTAL)
    FAULTS.extend([before, before, before])
    assert send(run) == 0
    assert steps() == list(range(16, TOTAL + 1, 16))
    assert capsys.readouterr().err.splitlines()[1:] == [
        "fake: cannot be reached, and is tried again every minute; nothing is lost: no route to host",
        "fake: is reached again",
        f"fake: sent 10 records and 0 media of {run}",
    ]


def test_what_a_killed_follower_sent_without_noting_it_is_not_sent_again(run: Path) -> None:
    def kill() -> None:
        raise KeyboardInterrupt

    train(run, 0, 64)
    FAULTS.append(kill)
    assert send(run) == 130
    assert json.loads((run / "trackers/fake.json").read_text())["samples_seen"] == -1
    train(run, 64, TOTAL)
    assert send(run) == 0
    assert steps() == list(range(16, TOTAL + 1, 16))


def test_what_a_killed_follower_had_not_flushed_is_sent_again(run: Path) -> None:
    def flush() -> None:
        stored().records.clear()  # as they were only in the memory of the process
        raise KeyboardInterrupt

    train(run, 0, 64)
    FAULTS.append(flush)
    assert send(run) == 130
    train(run, 64, TOTAL)
    assert send(run) == 0
    assert steps() == list(range(16, TOTAL + 1, 16))


def test_it_follows_a_training_from_before_its_start_to_its_end(tmp_path: Path, run: Path) -> None:
    moved = tmp_path / "later"
    status: list[int] = []
    arguments = ["follow", str(run), "--to", "fake", "--every", "0.01"]
    run.rename(moved)
    follower = threading.Thread(target=lambda: status.append(main(arguments)))
    follower.start()
    moved.rename(run)
    with Leases(run) as lock:
        lock.take("run")
        train(run, 0, 96)
        train(run, 48, TOTAL)
        assert follower.is_alive()  # the training may still show a preview
    follower.join()
    assert status == [0]
    assert steps() == list(range(16, TOTAL + 1, 16))
    assert stored().closed == stored().opened == 1


def clip(number: int) -> Clip:
    frames = np.random.default_rng(number).integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)
    return Clip(frames, np.sin(np.arange(8000) / 9).astype(np.float32) / 2)


def test_previews_are_sent_once_with_their_sound(run: Path) -> None:
    media = MediaConfig(frames=4, size=8, fps=7.9, audio=AudioImageConfig(sample_rate=16000))
    with Leases(run) as lock:
        lock.take("run")
        logger = Logger(run, 0, TOTAL)
        for seen in (16, 32, 48):
            logger.scalars(seen, {"loss": 1.0})
            show(logger.media(seen), "svg/0", clip(seen), media)
            logger.media(seen).audio("speech", torch.from_numpy(clip(seen).waveform), 16000)
            send(run)
        assert {sent[0] for sent in stored().media} == {16, 32}  # the one at 48 may be incomplete
        logger.close()
    logger = Logger(run, 32, TOTAL)
    logger.scalars(48, {"loss": 1.0})
    show(logger.media(48), "svg/0", clip(48), media)
    logger.close()
    send(run)
    kinds = [("svg/0/pictures", "picture"), ("svg/0/video", "video"), ("speech", "sound")]
    assert [sent[:3] for sent in stored().media] == [
        *((seen, *kind) for seen in (16, 32) for kind in kinds),
        *((48, *kind) for kind in kinds[:2]),
    ]
    _, _, _, video, has_sound = stored().media[1]
    assert has_sound
    with av.open(io.BytesIO(video)) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
        durations = [float(stream.duration * stream.time_base) for stream in container.streams]
        assert durations == pytest.approx([0.5, 0.5], abs=0.002)  # as long as the sound; the GIF's would be 0.52
        assert len(list(container.decode(video=0))) == 4


def test_a_log_that_is_replaced_or_incomplete_is_read_right(run: Path) -> None:
    log, reader = run / "log.jsonl", LogReader(run)
    assert reader.new() == []
    lines = [json.dumps({"samples_seen": seen, "time": seen}) + "\n" for seen in range(5)]
    log.write_text(lines[0] + lines[1][:9])
    assert [record["samples_seen"] for record in reader.new()] == [0]
    log.write_text("".join(lines[:3]))
    assert [record["samples_seen"] for record in reader.new()] == [1, 2]
    log.write_text(lines[0] + lines[3] + lines[4])  # as long as before
    assert [record["samples_seen"] for record in reader.new()] == [0, 3, 4]
    log.write_text(lines[0])
    assert [record["samples_seen"] for record in reader.new()] == [0]
    assert reader.new() == []


def test_mistakes_are_told_in_one_line(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def complaint(*arguments: str) -> str:
        assert main(["follow", *arguments, "--once"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "--to 'paper': must be one of wandb, swanlab, trackio, mlflow, fake" in complaint(str(run), "--to", "paper")
    monkeypatch.setitem(TRACKERS, "wandb", "a_package_that_nobody_has:Run")
    assert complaint(str(run), "--to", "wandb").endswith("is not installed: pip install 'mmldm_scale[wandb]'")
    assert "must be a run that has logged something" in complaint(str(tmp_path / "nowhere"), "--to", "fake")
    assert "--every: 0 must be above 0 seconds" in complaint(str(run), "--to", "fake", "--every", "0")
    train(run, 0, 32)
    with Leases(run) as other:
        other.take("follow_fake")
        assert f"process {os.getpid()} on " in complaint(str(run), "--to", "fake")
    send(run)
    capsys.readouterr()
    assert "has sent to project 'mmldm'" in complaint(str(run), "--to", "fake", "--project", "other")
    (run / "log.jsonl").unlink()
    train(run, 0, 32)
    assert "fake.json: is of another training in this folder" in complaint(str(run), "--to", "fake")
    (run / "trackers/fake.json").write_text("{}")
    assert "fake.json: cannot be read" in complaint(str(run), "--to", "fake")


@pytest.mark.parametrize("name", ["wandb", "swanlab", "trackio", "mlflow"])
def test_the_real_package_stores_a_run_on_this_machine(run: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip(name)
    logger = Logger(run, 0, TOTAL)
    logger.scalars(16, {"loss": 1.0})
    show(logger.media(16), "svg/0", clip(0), MediaConfig(frames=4, size=8, audio=AudioImageConfig(sample_rate=16000)))
    logger.close()
    environment = {
        **os.environ,
        "WANDB_MODE": "offline",
        "SWANLAB_MODE": "offline",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    command = [sys.executable, "-m", "mmldm_scale.cli", "follow", str(run), "--to", name, "--once"]
    for sent in ("1 records and 2 media", "0 records and 0 media"):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"{name}: sent {sent} of {run}" in done.stderr


@pytest.mark.parametrize("name", ["wandb", "swanlab", "trackio", "mlflow"])
def test_each_adapter_is_short_and_has_its_extra(name: str) -> None:
    file = Path(importlib.import_module("mmldm_scale.trackers").__file__).with_name(f"{name}.py")
    assert len(file.read_text().splitlines()) <= 80
    assert f"\n{name} =\n" in (Path(__file__).parents[2] / "setup.cfg").read_text()
