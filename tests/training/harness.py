"""Runs the toy task as users run a trainer: in processes of its own, several of them through torchrun."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

TOY = Path(__file__).with_name("toy.py")
EVERY_STEP = ("training.checkpoint_every=16", "training.keep_checkpoints=100")


@dataclass
class Finished:
    run: Path
    status: int
    output: str

    def log(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.run / "log.jsonl").read_text().splitlines()]

    def losses(self) -> dict[int, float]:
        return {record["samples_seen"]: record["loss"] for record in self.log()}

    def checkpoints(self) -> list[Path]:
        return sorted((self.run / "checkpoints").iterdir())


def command(run: Path, *overrides: str, processes: int = 2) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(launcher if processes > 1 else []), str(TOY), f"run={run}", *overrides]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
