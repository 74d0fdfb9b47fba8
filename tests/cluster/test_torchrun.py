"""Several processes on one machine, by ``mmldm train --processes`` or torchrun: they meet, a mistake is shown once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmldm_scale.cluster import torchrun
from tests.support.datasets.latent_sets import write_latents

CONFIG = """
model: {depth: 1, width: 16, heads: 2, context_tokens: 2, context_width: 4}
training: {total_samples: 16, global_batch: 8, micro_batch: 4, precision: fp32, workers: 0, log_every: 8,
           checkpoint_every: 16, preview_every: 16, ema_lengths: [0.1]}
"""
COMMAND = [sys.executable, "-m", "mmldm_scale.cli", "train", "dit", "--processes", "2"]


def test_users_mistake_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, f"shards={tmp_path / 'no'}", f"run={tmp_path / 'run'}"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("mmldm: ") == 1
    assert f"{tmp_path / 'no'}" in done.stderr
    assert "Traceback" not in done.stderr


def test_torchrun_starts_the_same_command(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    settings = ["--config", tmp_path / "tiny.yaml", f"shards={write_latents(tmp_path / 'set')}", f"run={tmp_path}/run"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "mmldm_scale.cli", "train", "dit", *settings],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run/checkpoints/step-000000000016/manifest.json").read_text())
    assert manifest["world_size"] == 2


def test_status_of_the_processes_becomes_that_of_the_launcher() -> None:
    assert torchrun.run(1, ["train", "no-such-model"]) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signal_ends_launcher_and_processes(tmp_path: Path, number: signal.Signals) -> None:
    """At the moment when they have just been started, too, where the launcher does not yet know of them."""
    launcher = subprocess.Popen(
        [*COMMAND, f"shards={tmp_path}", f"run={tmp_path / 'run'}"], stderr=subprocess.PIPE, text=True
    )
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    deadline = time.monotonic() + 60
    while len(children.read_text().split()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(launcher.pid, number)
    _, output = launcher.communicate(timeout=60)  # until the last process that could still say something is gone
    assert launcher.returncode != 0
    assert "SignalException" not in output
