"""A training without end of small latents, by any launcher, whose processes a test signals."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from mmldm_scale.common.processes import identity
from tests.support.run_results import ENVIRONMENT

LAUNCHERS = {
    "alone": [sys.executable, "-m", "mmldm_scale.cli", "train", "dit"],
    "--processes": [sys.executable, "-m", "mmldm_scale.cli", "train", "dit", "--processes", "2"],
    "torchrun": [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "mmldm_scale.cli", "train", "dit"),
    ],
}
SMALL = (
    *("model.depth=1", "model.width=16", "model.heads=2", "model.context_tokens=2", "model.context_width=4"),
    *("training.total_samples=16000000", "training.global_batch=8", "training.micro_batch=4", "training.workers=0"),
    *("training.log_every=8", "training.preview_every=16000000", "training.precision=fp32"),
)
LIMIT = 200.0  # seconds for a start, and for an end
STOPPED = re.compile(r"stopping at ([\d,]+) samples after (.*); saved")


class SignalledRun:
    """A training of the set ``latents`` into ``run``, started by one of :data:`LAUNCHERS`.

    It has taken a step, and with ``every`` it has saved a checkpoint.

    Args:
        every: samples from one checkpoint to the next; 0: no checkpoint.
    """

    def __init__(self, launcher: str, latents: Path, run: Path, every: int = 0) -> None:
        self.run = run
        settings = (f"shards={latents}", f"run={run}", f"training.checkpoint_every={every or 16_000_000}")
        self._output = run.with_name(f"{run.name}.out")
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [*LAUNCHERS[launcher], *SMALL, *settings], env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT
            )
        sight = run / (f"checkpoints/step-{every:012d}" if every else "log.jsonl")
        deadline = time.monotonic() + LIMIT
        while (
            not (sight.exists() and sight.stat().st_size)
            and self.process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        self.ranks = [] if launcher == "alone" else children(self.process.pid)
        assert _has_content(sight), self.output

    @property
    def output(self) -> str:
        """What all processes have printed so far."""
        return self._output.read_text()

    def signal(self, number: int, target: str) -> None:
        """Signal the "launcher", rank 1 ("rank"), or "all", as SLURM does."""
        pids = {"launcher": [self.process.pid], "rank": self.ranks[1:], "all": [*self.ranks, self.process.pid]}
        for pid in pids[target]:
            os.kill(pid, number)

    def wait(self) -> int:
        """Wait until the launcher and the ranks have ended; return the launcher's status, below 0 for a signal."""
        status = self.process.wait(LIMIT)
        deadline = time.monotonic() + LIMIT
        while any(map(identity, self.ranks)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(map(identity, self.ranks))
        return status

    def stopped_by(self) -> str | None:
        """Return what the run says that stopped it, if it says so; check that the newest checkpoint is that step's."""
        lines = [match for match in map(STOPPED.fullmatch, self.output.splitlines()) if match]
        assert len(lines) <= 1
        newest = max((folder.name for folder in self.run.glob("checkpoints/step-*")), default="")
        for line in lines:
            assert newest == f"step-{int(line[1].replace(',', '')):012d}"
        return lines[0][2] if lines else None

    def kill(self) -> None:
        """Kill what is left."""
        for pid in filter(identity, (self.process.pid, *self.ranks)):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def children(pid: int) -> list[int]:
    """Return the processes that the main thread of ``pid`` started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0
