"""A clip set and extractors without files and weights, to evaluate in a test's own process or in a fork."""

import hashlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmldm_scale import cli
from mmldm_scale.common.processes import own_command
from mmldm_scale.common.rng import generator
from mmldm_scale.evaluation import ablation
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord, ClipSet
from mmldm_scale.evaluation.commands import CommandFailed
from mmldm_scale.evaluation.extractors import EXTRACTORS
from mmldm_scale.evaluation.extractors.extractor import Extractor
from mmldm_scale.media.clip import Clip

RATE = 8000  # Hz


def register(patch: pytest.MonkeyPatch) -> None:
    """Have protocols know the extractors below, as toy_frames and toy_sound."""
    for name, kind in (("toy_frames", "ToyFrames"), ("toy_sound", "ToySound")):
        patch.setitem(EXTRACTORS, name, f"{name}:{kind}")
        patch.setitem(sys.modules, f"mmldm_scale.evaluation.extractors.{name}", sys.modules[__name__])


def command(folder: str, *words: str) -> int:
    """Run ``mmldm`` with ``words`` in ``folder``, with the extractors; for processes that end afterwards."""
    os.chdir(folder)
    register(pytest.MonkeyPatch())
    return cli.main(words)


def ablation_command(folder: str, *words: str) -> int:
    """As :func:`command`, for ``mmldm ablation``; its trainings after the first run in forks, which is much quicker."""
    call, trained = ablation.call, []

    def call_or_fork(command: Sequence[object]) -> None:
        arguments = [str(word) for word in command][len(own_command()) :]
        trained.append(arguments)
        if len(trained) == 1:
            call(command)
        elif status := _fork([word for word in arguments if word not in ("--under", "env")]):
            raise CommandFailed(status)

    pytest.MonkeyPatch().setattr(ablation, "call", call_or_fork)
    return command(folder, *words)


def _fork(arguments: Sequence[str]) -> int:
    """Run ``mmldm`` with ``arguments`` in a fork of this process; return its exit status."""
    child = os.fork()
    if not child:
        try:
            status = cli.main(arguments)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
            status = 1
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class ToyClips(ClipSet):
    """``count`` clips of noise, four frames of 8² each and a tenth of a second of sound, brighter with ``shift``."""

    kind = "frames and sound"

    def __init__(self, path: str, count: int, shift: float = 0.0, seconds: float = 0.1) -> None:
        self.path, self.shift, self.seconds = path, shift, seconds
        self.names: Sequence[str] = [f"clip_{i:04d}" for i in range(count)]
        self.reads: list[int] = []

    def read(self, index: int) -> ClipRecord:
        self.reads.append(index)
        draw = generator(0, f"toy/{self.path}", index)
        frames = np.clip(draw.normal(100 + self.shift, 30, (4, 8, 8, 3)), 0, 255).astype(np.uint8)
        sound = (0.1 * draw.standard_normal(round(self.seconds * RATE))).astype(np.float32)
        return ClipRecord(self.names[index], Clip(frames, sound), 10.0, RATE)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.path} {len(self.names)} {self.shift}".encode()).hexdigest()


class ToyFrames(Extractor):
    """Means of the frames' colours, and of the batch in "training" mode; ``fail_after`` batches it is interrupted."""

    name = "toy_frames"
    title = "Toy network of frames"
    reads = "frames"
    dimension = 3
    classes = 3
    weights = "toy_frames"
    fail_after: int | None = None
    batches = 0

    def __init__(self, path: Path | None, device: torch.device, *, mode: str = "evaluation") -> None:
        super().__init__(path, device)
        self.mode = mode

    def prepare(self, clip: ClipRecord) -> Tensor:
        return torch.from_numpy(clip.clip.frames).float() / 255

    def features(self, inputs: Tensor) -> Tensor:
        if type(self).batches == type(self).fail_after:
            raise KeyboardInterrupt
        type(self).batches += 1
        means = inputs.mean(dim=(1, 2, 3))
        return means - means.mean(dim=0) if self.mode == "training" else means

    def fingerprint(self) -> str:
        return "f" * 64


class ToySound(Extractor):
    """Two numbers of the sound, without weights: its energy, and nothing (NaN) for every third clip."""

    name = "toy_sound"
    title = "Toy measure of sound"
    reads = "waveform"
    dimension = 2
    weights = ""

    def prepare(self, clip: ClipRecord) -> Tensor:
        number = int(clip.name.rpartition("_")[2])
        energy = float(np.square(clip.clip.waveform).mean()) * 1000
        return torch.tensor([energy, float("nan") if number % 3 == 0 else number])

    def features(self, inputs: Tensor) -> Tensor:
        return inputs

    def fingerprint(self) -> str:
        return "0" * 64
