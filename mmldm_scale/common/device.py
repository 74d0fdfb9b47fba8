"""The torch device that a command runs on: ``choose_device("auto")``."""

import torch

from mmldm_scale.common.errors import UserError


def choose_device(name: str) -> torch.device:
    """Return the device called ``name`` in torch ("cuda:1", "cpu"), or for "auto" a GPU if there is one, else the CPU.

    Raises:
        UserError: torch cannot use that device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch finds no GPU on this machine; use 'auto' or 'cpu'")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: cannot be used: {str(error).splitlines()[0]}") from None
    return device


def training_device() -> torch.device:
    """Return the GPU that this process trains on, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
