"""Snapshots of a run's averaged weights, from which ``mmldm export`` combines averages of other lengths (``ema.py``).

They are in ``runs/NAME/ema/``, one safetensors file for each time and length, with the parameter names of the trained
module and the CRC-32 of each tensor. They stay when checkpoints are removed. They are stored in float16, half the size
of float32: its relative rounding error of 2^-12 is an eighth of bfloat16's, and combining averages multiplies it by a
few at most.
"""

import re
import sys
import zlib
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmldm_scale.common.atomic_files import full_disk, write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.training.engine.deepspeed_engine import averaged_state, base_optimizer, trained_names
from mmldm_scale.training.engine.deepspeed_internals import Engine
from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.engine.ema import AveragingProfile

NAME = re.compile(r"step-(\d{12})-(0\.\d+)\.safetensors")  # samples seen, length of the average
REASON_LENGTH = 200  # characters of a library's message that are repeated in an error


def write(run: Path, engine: Engine, samples_seen: int, world: World) -> None:
    """Write each average of the trained weights, whole or not at all; all ranks call this together.

    A snapshot of the same ``samples_seen``, which a run that was killed before its next checkpoint has written, is
    replaced. If the disk is full, a line says so and the snapshot is left out; others can still be combined.
    """
    for length in base_optimizer(engine).lengths:
        state = averaged_state(engine, world, length)
        if not world.is_rank0:
            continue
        path = _folder(run) / f"step-{samples_seen:012d}-{length}.safetensors"
        weights = {name: state[name].half() for name in trained_names(engine)}
        try:
            with full_disk(path):
                path.parent.mkdir(exist_ok=True)
            write_whole(path, save(weights, metadata={name: _checksum(weight) for name, weight in weights.items()}))
        except UserError as error:
            print(f"snapshot left out: {error}", file=sys.stderr, flush=True)


def find(run: Path, until: int) -> dict[AveragingProfile, Path]:
    """Return the snapshots of ``run`` that were taken at ``until`` samples or before."""
    snapshots = {}
    for path in sorted(_folder(run).glob("*.safetensors")):
        match = NAME.fullmatch(path.name)
        if match and int(match[1]) <= until:
            snapshots[AveragingProfile(int(match[1]), float(match[2]))] = path
    return snapshots


class EMASnapshot:
    """One snapshot file, mapped into memory; raises UserError if it is damaged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = safe_open(path, framework="pt")
            self._checksums = self._file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise self._damaged(str(error)) from None

    def tensor(self, name: str) -> Tensor:
        """Return the parameter ``name``, float16; raise UserError if it is missing or damaged."""
        try:
            tensor = self._file.get_tensor(name)
        except SafetensorError as error:
            raise self._damaged(str(error)) from None
        if _checksum(tensor) != self._checksums.get(name):
            raise self._damaged(f"{name} differs from its checksum")
        return tensor

    def _damaged(self, reason: str) -> UserError:
        reason = " ".join(reason.split())[:REASON_LENGTH]
        return UserError(f"{self._path}: is damaged ({reason}); move it away to combine the other snapshots")


def _folder(run: Path) -> Path:
    return run / "ema"


def _checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(tensor.contiguous().numpy().tobytes()):08x}"
