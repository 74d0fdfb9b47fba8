"""A disk that is full while a checkpoint is saved: no rank may raise, since the others wait for it inside DeepSpeed."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch

from mmldm_scale.training.engine import save

FULL = (errno.ENOSPC, errno.EDQUOT)


class Shortage:
    """Whether there was room for all that this rank wrote.

    Attributes:
        path: The first file that there was no room for.
    """

    def __init__(self) -> None:
        self.path: Path | None = None

    @contextmanager
    def noted(self, path: Path) -> Iterator[None]:
        """Note that the disk was full in the block, where ``path`` is written, and go on."""
        try:
            yield
        except Exception as error:  # each library has an exception of its own for it
            if not _is_full(error):
                raise
            self.path = self.path or path

    def save_engine(self, engine: deepspeed.DeepSpeedEngine, folder: Path, tag: str) -> None:
        """Have ``engine`` write its files into ``folder/tag``, which exists, and no scripts beside them."""
        engine.checkpoint_engine.save = self._save
        engine._copy_recovery_script = lambda _: None
        save(engine, folder, tag)

    def _save(self, state_dict: dict[str, Any], path: str) -> None:
        # To a stream, not a path: torch hides what the system said of a path.
        with self.noted(Path(path)), open(path, "wb") as stream:
            torch.save(state_dict, stream)


def _is_full(error: BaseException | None) -> bool:
    while error:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(f"(os error {number})" in str(error) for number in FULL):  # safetensors
            return True
        error = error.__cause__ or error.__context__
    return False
