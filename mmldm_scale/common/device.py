"""The device that a command works on."""

import torch

from mmldm_scale.common.errors import UserError


def choose_device(name: str) -> torch.device:
    """Return the device ``name``, as torch writes it, or for "auto" a GPU if there is one.

    Raises:
        UserError: it cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: there is no GPU that torch can use here; 'auto' or 'cpu' fits")
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
