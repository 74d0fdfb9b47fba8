"""Feature files: the vectors of a clip set, block by block.

    FOLDER/<set>/<network>-<choices>/block-000012.safetensors

``<set>`` is the beginning of the set's fingerprint and ``<choices>`` that of a sha256 of everything else that the
vectors depend on. A block holds the vectors of clips at fixed positions, (n, D) float32, whoever computes them; its
file is whole or absent. So any number of jobs make blocks, a killed one loses the block that it was at, and the vectors
read in the order of the blocks are the same for any number of jobs.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mmldm_scale.common.atomic_files import remove_leftovers, write_whole
from mmldm_scale.common.errors import UserError

VERSION = 1  # of how features are made: raise it when the same choices give other vectors
DIGITS = 12  # of a fingerprint, in names of folders
FEATURES, NAMES = "features", "names"  # the tensor, and the metadata with the clips' names as JSON


@dataclass(frozen=True)
class Block:
    """A block of a clip set: ``positions`` in the set of its clips, and its number."""

    number: int
    positions: Sequence[int]

    @property
    def name(self) -> str:
        """The name of its file, without the suffix."""
        return f"block-{self.number:06d}"


def split(positions: Sequence[int], batch_size: int) -> list[Block]:
    """Return ``positions`` in blocks of ``batch_size`` clips, which a network sees together."""
    starts = range(0, len(positions), batch_size)
    return [Block(i, positions[start : start + batch_size]) for i, start in enumerate(starts)]


def digest(choices: object) -> str:
    """Return the sha256 (hex) of ``choices``, JSON values that features depend on, and of :data:`VERSION`."""
    return hashlib.sha256(json.dumps([VERSION, choices], sort_keys=True).encode()).hexdigest()


class FeatureFolder:
    """The feature files of one network of one clip set, in ``folder``, which is made when the first one is written."""

    def __init__(self, folder: Path, dimension: int) -> None:
        self.folder, self.dimension = folder, dimension

    def has(self, block: Block) -> bool:
        """Return whether the file of ``block`` is there."""
        return self._file(block).exists()

    def write(self, block: Block, features: np.ndarray, names: Sequence[str]) -> None:
        """Write the vectors of ``block``, (n, D) float32, and its clips' names; raise UserError if the disk is full."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._file(block))
        write_whole(self._file(block), save({FEATURES: features}, {NAMES: json.dumps(list(names))}))

    def read(self, blocks: Sequence[Block], names: Sequence[str]) -> np.ndarray:
        """Return the vectors of ``blocks``, (N, D) float32, whose clips have ``names``.

        Raises:
            UserError: a file is damaged, or of other clips.
        """
        parts, read_names = [], []
        for block in blocks:
            features, block_names = self._read(block)
            parts.append(features)
            read_names += block_names
        if read_names != list(names):
            raise UserError(f"{self.folder}: holds features of other clips; remove this folder")
        return np.concatenate(parts)

    def _read(self, block: Block) -> tuple[np.ndarray, list[str]]:
        file = self._file(block)
        try:
            with safe_open(file, framework="numpy") as content:
                features: np.ndarray = content.get_tensor(FEATURES)
                names = json.loads((content.metadata() or {})[NAMES])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{file}: cannot be read as features: {error}; remove the file") from None
        if features.shape != (len(block.positions), self.dimension) or features.dtype != np.float32:
            expected = f"({len(block.positions)}, {self.dimension}) float32"
            raise UserError(f"{file}: holds {features.shape} {features.dtype}, not {expected}; remove the file")
        return features, names

    def _file(self, block: Block) -> Path:
        return self.folder / f"{block.name}.safetensors"
