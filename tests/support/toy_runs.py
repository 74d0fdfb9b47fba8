"""Runs of the toy trainable of tests/training for fault trials: twenty steps, a line in the log for each."""

import random
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.support.run_results import Finished, Forks

BATCH, STEPS = 16, 20
SAMPLES = BATCH * STEPS
OPTIONS = (f"training.total_samples={SAMPLES}", f"training.preview_every={SAMPLES}", "training.keep_checkpoints=100")


class Toys:
    """Trains toys below ``folder``, and caches undisturbed runs for comparison."""

    def __init__(self, forks: Forks, folder: Path) -> None:
        self._forks, self.folder = forks, folder
        self._undisturbed: dict[tuple, Finished] = {}

    def train(self, name: str, *overrides: str, processes: int = 2, how: tuple = ("train",)) -> Finished:
        """Train ``name`` on, by the function of process_runner.py and its first arguments in ``how``."""
        run = self.folder / name
        return Finished(run, *self._forks(processes, *how, f"run={run}", *OPTIONS, *overrides))

    def undisturbed(self, *overrides: str, processes: int = 2) -> Finished:
        """Return the run with ``overrides`` that was never stopped."""
        key = (processes, *overrides)
        if key not in self._undisturbed:
            done = self.train(f"undisturbed-{len(self._undisturbed)}", *overrides, processes=processes)
            assert done.status == 0, done.output
            self._undisturbed[key] = done
        return self._undisturbed[key]


def resumed_from(run: Finished) -> int:
    """Return the samples seen from which this start of the run resumed: 0 if from the beginning."""
    line = next((line for line in run.output.splitlines() if line.startswith("resuming from ")), "")
    return int(line.split()[3].replace(",", "")) if line else 0


def steps_read(run: Path) -> list[list[int]]:
    """Return the positions that were read in each step; all processes finish a step before they begin the next."""
    positions = [int(line) for line in (run / "positions").read_text().split()]
    return [sorted(positions[first : first + BATCH]) for first in range(0, len(positions), BATCH)]


def weights(run: Finished) -> torch.Tensor:
    """Return all averaged weights as one vector, float64."""
    state = load_file(run.checkpoints()[-1] / "weights/model.safetensors")
    return torch.cat([state[name].double().flatten() for name in sorted(state)])


def harm(checkpoint: Path, kind: str, dice: random.Random) -> None:
    """Damage one file of ``checkpoint``, any of them with the same chance."""
    file = dice.choice(sorted(path for path in checkpoint.rglob("*") if path.is_file()))
    content = bytearray(file.read_bytes())
    if kind == "flip":
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    elif kind == "cut":
        del content[dice.randrange(len(content)) :]
    file.unlink() if kind == "missing" else file.write_bytes(content)
