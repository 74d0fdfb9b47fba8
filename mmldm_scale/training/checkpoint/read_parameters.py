"""Reads the trained parameters from a checkpoint's DeepSpeed files, one at a time, without an engine or a GPU.

    parameters = read(folder, stage, written_by)
    weight = parameters.tensor(parameters.names[0], MASTER)

It reads the float32 master weights and the optimizer's state of each: moments and averages. Each tensor is returned
whole, for any ZeRO stage and number of processes that wrote the files.
"""

from pathlib import Path
from typing import Any

from deepspeed.checkpoint.constants import FP32_WEIGHT_KEY, OPTIMIZER_STATE_DICT, PARAM_SHAPES
from torch import Tensor

from mmldm_scale.training.checkpoint.reshard import (
    Piece,
    collect,
    flat_tensors,
    read_model,
    read_parts,
    written_pieces,
)
from mmldm_scale.training.engine.deepspeed_engine import TRAINED

MASTER = FP32_WEIGHT_KEY


class Partitioned:
    """The parameters in files that ZeRO 1 to 3 wrote.

    Attributes:
        names: of the trained parameters.
        keys: of what is stored of each: :data:`MASTER`, and those of the optimizer's state.
    """

    def __init__(self, folder: Path, written_by: int) -> None:
        parts = read_parts(folder, written_by)
        shapes = read_model(folder)[PARAM_SHAPES]
        self._shapes = {name: shape for group in shapes for name, shape in group.items()}
        self._written = written_pieces(parts, shapes)
        self._tensors = [flat_tensors(part) for part in parts]
        self.names = list(self._shapes)
        self.keys = list(self._tensors[0][0])

    def tensor(self, name: str, key: str) -> Tensor:
        """Return what is stored of the parameter ``name`` under ``key``, float32, in the parameter's shape."""
        shape = self._shapes[name]
        whole = Piece(name, rank=0, flat=0, offset=0, start=0, count=shape.numel())
        flats = [[own[key] for own in part] for part in self._tensors]
        return collect([whole], self._written, flats, shape.numel()).view(shape)


class Whole:
    """The parameters in files that ZeRO 0 wrote; attributes as in :class:`Partitioned`."""

    def __init__(self, folder: Path) -> None:
        model = read_model(folder)
        optimizer: dict[str, Any] = model["optimizer"]
        self.names = model[TRAINED]
        if "fp32_groups" in optimizer:  # low precision
            masters = [master for group in optimizer["fp32_groups"] for master in group]
            optimizer = optimizer[OPTIMIZER_STATE_DICT]
        else:
            masters = [model["module"][name] for name in self.names]
        self._tensors = {
            name: {MASTER: master, **optimizer["state"][number]}
            for number, (name, master) in enumerate(zip(self.names, masters, strict=True))
        }
        self.keys = list(self._tensors[self.names[0]])

    def tensor(self, name: str, key: str) -> Tensor:
        """See :meth:`Partitioned.tensor`."""
        return self._tensors[name][key]


def read(folder: Path, stage: int, written_by: int) -> Partitioned | Whole:
    """Return the parameters in ``folder``, which ``written_by`` processes wrote with ZeRO ``stage``.

    Raises:
        Exception: of any type, if DeepSpeed did not write the files.
    """
    return Partitioned(folder, written_by) if stage else Whole(folder)
