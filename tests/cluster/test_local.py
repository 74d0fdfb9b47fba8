"""Several processes on one machine by ``mmldm train --processes``: they meet, and a mistake is shown once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from mmldm_scale.cluster import local

COMMAND = [sys.executable, "-m", "mmldm_scale.cli", "train", "dit", "--processes", "2"]


def test_users_mistake_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, f"shards={tmp_path / 'no'}", f"run={tmp_path / 'run'}"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("mmldm: ") == 1
    assert f"{tmp_path / 'no'}" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_of_the_processes_becomes_that_of_the_launcher() -> None:
    assert local.run(1, ["train", "no-such-model"]) == 2


def test_signal_ends_launcher_and_processes(tmp_path: Path) -> None:
    launcher = subprocess.Popen(
        [*COMMAND, f"shards={tmp_path}", f"run={tmp_path / 'run'}"], stderr=subprocess.PIPE, text=True
    )
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    deadline = time.monotonic() + 60
    while len(children.read_text().split()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = children.read_text().split()
    os.kill(launcher.pid, signal.SIGTERM)
    _, output = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert not any(Path(f"/proc/{pid}/stat").exists() for pid in workers)
    assert "SignalException" not in output
