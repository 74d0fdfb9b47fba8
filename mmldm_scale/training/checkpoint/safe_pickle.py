"""Loading DeepSpeed's checkpoint files, which are pickles, without running code that a pickle may contain.

Every global name that a file refers to must be one of a short list of plain data types.
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
# Python 3.11.0 to 3.11.3 (Debian 12 has 3.11.2) pickles a member of an enumeration as a call of `getattr`, which cannot
# be allowed. With this, every version pickles the member by its value.
copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))


def forbidden(folder: Path, tags: Iterable[str]) -> str | None:
    """Return why DeepSpeed's files under ``tags`` in ``folder`` must not be loaded; None: they hold only plain data."""
    for file in sorted(file for tag in tags for file in (folder / tag).glob("*.pt")):
        try:
            unsafe = set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) - ALLOWED_GLOBALS
        except Exception as error:  # of any type: the file is not one of DeepSpeed's
            return f"{file}: not loaded, since it cannot be examined: {' '.join(str(error).split())[:200]}"
        if unsafe:
            return f"{file}: not loaded, since it refers to {', '.join(sorted(unsafe))}, which could run code"
    return None


def mapped(file: Path) -> dict[str, Any]:
    """Return the content of ``file``; its tensors are mapped, so that only what is used is read.

    Raises:
        Exception: of any type, if DeepSpeed did not write the file.
    """
    with torch.serialization.safe_globals(list(ALLOWED)):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
