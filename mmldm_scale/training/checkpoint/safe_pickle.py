"""The files of DeepSpeed's checkpoints, which are pickles, without the code that a pickle can run.

Every global name that a file refers to is held against a short list of plain data types.
"""

import copyreg
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

ALLOWED = (DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address)
ALLOWED_GLOBALS = frozenset(f"{kind.__module__}.{kind.__qualname__}" for kind in ALLOWED)
# Python 3.11.0 to 3.11.3 (Debian 12 has 3.11.2) pickles a member of an enumeration as a call of `getattr`, which is on
# no such list for a good reason. This has every version pickle it by its value.
copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))


def forbidden(folder: Path, tags: Iterable[str]) -> str | None:
    """Say which of DeepSpeed's files under ``tags`` in ``folder`` refers to anything but plain data."""
    for file in sorted(file for tag in tags for file in (folder / tag).glob("*.pt")):
        try:
            unsafe = set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) - ALLOWED_GLOBALS
        except Exception as error:  # whatever it is, the file is none that DeepSpeed wrote
            return f"{file}: cannot be examined, so it is not loaded: {' '.join(str(error).split())[:200]}"
        if unsafe:
            return f"{file}: refers to {', '.join(sorted(unsafe))}, which no checkpoint of ours does; not loaded"
    return None


def mapped(file: Path) -> dict[str, Any]:
    """Return what ``file`` holds; of its tensors only what is then read comes into memory.

    Raises:
        Exception: of many kinds, if the file is none that DeepSpeed wrote.
    """
    with torch.serialization.safe_globals(list(ALLOWED)):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
