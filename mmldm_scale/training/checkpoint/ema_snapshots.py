"""Snapshots of a run's averaged weights, of which averages of other lengths are made when it is over (``ema.py``).

They lie in ``runs/NAME/ema/``, one safetensors file for each time and length, with the names of the trained module and
the CRC-32 of each tensor, and stay when checkpoints go. They are in float16, for half the disk: it rounds at 2^-12 of a
number, an eighth of what bfloat16 does to the weights in use, and combining averages multiplies that by a few at most.
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

NAME = re.compile(r"step-(\d{12})-(0\.\d+)\.safetensors")


def write(run: Path, engine: Engine, samples_seen: int, world: World) -> None:
    """Write each average of the trained weights, whole or not at all; all ranks call this together.

    One that was written before at ``samples_seen``, by a process that was killed before its next checkpoint, is
    replaced. A full disk is said, and leaves a gap that other snapshots can do without.
    """
    for length in base_optimizer(engine).lengths:
        state = averaged_state(engine, world, length)
        if not world.is_rank0:
            continue
        path = _folder(run) / f"step-{samples_seen:012d}-{length}.safetensors"
        halves = {name: state[name].half() for name in trained_names(engine)}
        try:
            with full_disk(path):
                path.parent.mkdir(exist_ok=True)
            write_whole(path, save(halves, metadata={name: _checksum(half) for name, half in halves.items()}))
        except UserError as error:
            print(f"no snapshot: {error}", file=sys.stderr, flush=True)


def find(run: Path, until: int) -> dict[AveragingProfile, Path]:
    """Return the snapshots of ``run`` that were taken at ``until`` samples or before."""
    found = {}
    for path in sorted(_folder(run).glob("*.safetensors")):
        name = NAME.fullmatch(path.name)
        if name and int(name[1]) <= until:
            found[AveragingProfile(int(name[1]), float(name[2]))] = path
    return found


class EMASnapshot:
    """One of the files, mapped into memory; raises UserError if it is damaged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = safe_open(path, framework="pt")
            self._checksums = self._file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise self._damaged(str(error)) from None

    def tensor(self, name: str) -> Tensor:
        """Return the parameter ``name``, float16; raise UserError if it is not there, or damaged."""
        try:
            tensor = self._file.get_tensor(name)
        except SafetensorError as error:
            raise self._damaged(str(error)) from None
        if _checksum(tensor) != self._checksums.get(name):
            raise self._damaged(f"{name} differs from its checksum")
        return tensor

    def _damaged(self, reason: str) -> UserError:
        reason = " ".join(reason.split())[:200]
        return UserError(f"{self._path}: is damaged ({reason}); if it is moved away, others have to do")


def _folder(run: Path) -> Path:
    return run / "ema"


def _checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(tensor.contiguous().numpy().tobytes()):08x}"
