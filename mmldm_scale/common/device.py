"""The torch device that a command runs on: ``choose_device("auto")``."""

from collections.abc import Sequence

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


def gpu_index(local_rank: int, visible: int, processes: int | None) -> int:
    """Return which of the ``visible`` GPUs the process ``local_rank`` of a node trains on.

    SLURM may show each task its own GPU alone (``--gpus-per-task``, ``--gpu-bind``): then that one, number 0.

    Args:
        local_rank: number of this process among those of its node.
        visible: number of GPUs that this process sees.
        processes: number of processes on the node; None if that is unknown.

    Raises:
        UserError: there are too few GPUs, or none for this process.
    """
    if visible == 1:
        return 0
    if visible < max(processes or 1, local_rank + 1):
        of_all = f"of the {processes} on this node" if processes else "of this node"
        raise UserError(
            f"process {local_rank} {of_all} sees {visible} GPUs; each needs one of its own: start as many processes as "
            "there are GPUs, or show each its own GPU alone"
        )
    return local_rank


def gpu_identity(device: torch.device) -> str:
    """Return what distinguishes the GPU ``device`` from all others; empty for a CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def shared_gpu(identities: Sequence[str]) -> str | None:
    """Return in words which ranks share a GPU, or None; ``identities`` has each rank's :func:`gpu_identity`.

    NCCL refuses that only in the first exchange, and with a traceback.
    """
    for rank, identity in enumerate(identities):
        first = identities.index(identity)
        if identity and first < rank:
            return f"ranks {first} and {rank} have the same GPU; start one process for each GPU of a node"
    return None


def training_device() -> torch.device:
    """Return the GPU that this process trains on, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
