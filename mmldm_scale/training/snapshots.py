"""Snapshots of a run's averaged weights, of which averages of other lengths are made when it is over (``ema.py``).

They lie in ``runs/NAME/ema/``, one safetensors file for each time and length, with the names of the trained module, and
stay when checkpoints go. They are in float16, for half the disk: it rounds at 2^-12 of a number, an eighth of what
bfloat16 does to the weights in use, and combining averages multiplies that by a few at most.
"""

import re
import sys
from pathlib import Path

import deepspeed
from safetensors.torch import save

from mmldm_scale.errors import UserError
from mmldm_scale.files import full_disk, write_whole
from mmldm_scale.training.distributed import World
from mmldm_scale.training.ema import Profile
from mmldm_scale.training.engine import averaged_state, base_optimizer

NAME = re.compile(r"step-(\d{12})-(0\.\d+)\.safetensors")


def write(run: Path, engine: deepspeed.DeepSpeedEngine, samples_seen: int, world: World) -> None:
    """Write each average of the trained weights, whole or not at all; all ranks call this together.

    One that was written before at ``samples_seen``, by a process that was killed before its next checkpoint, is
    replaced. A full disk is said, and leaves a gap that other snapshots can do without.
    """
    trained = [name for name, parameter in engine.module.named_parameters() if parameter.requires_grad]
    for length in base_optimizer(engine).lengths:
        state = averaged_state(engine, world, length)
        if not world.first:
            continue
        path = _folder(run) / f"step-{samples_seen:012d}-{length}.safetensors"
        try:
            with full_disk(path):
                path.parent.mkdir(exist_ok=True)
            write_whole(path, save({name: state[name].half() for name in trained}))
        except UserError as error:
            print(f"no snapshot: {error}", file=sys.stderr, flush=True)


def find(run: Path, until: int) -> dict[Profile, Path]:
    """Return the snapshots of ``run`` that were taken at ``until`` samples or before."""
    found = {}
    for path in sorted(_folder(run).glob("*.safetensors")):
        name = NAME.fullmatch(path.name)
        if name and int(name[1]) <= until:
            found[Profile(int(name[1]), float(name[2]))] = path
    return found


def _folder(run: Path) -> Path:
    return run / "ema"
