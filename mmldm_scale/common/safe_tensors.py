"""Reading tensors from untrusted weights files, .safetensors or torch's: ``read_tensors(path, prefix)``.

A torch file (.ckpt, .pth, .bin, or HiFi-GAN's without a suffix) is a pickle, which can contain code. It is read with
torch's weights-only unpickler, which builds tensors, containers and numbers and refuses everything else.
"""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mmldm_scale.common.errors import UserError

WRAPPERS = ("state_dict", "generator", "model")  # keys under which Lightning, HiFi-GAN and PANNs hold their weights
LFS_POINTER = b"version https://git-lfs"  # first bytes of a Git LFS pointer


class _Ignored:
    """Placeholder for an object of the training program that wrote the file; accepts any arguments and state."""

    def __init__(self, *arguments: Any) -> None:
        """Ignore ``arguments``."""

    def __setstate__(self, state: Any) -> None:
        """Ignore ``state``."""


# Objects that published files contain beside the weights: a callback in Stable Diffusion's and latent diffusion's own
# .ckpt files, and the state of the data loader, as numpy's arrays, in PANNs' files.
IGNORED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Ignored, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    *(
        (_Ignored, f"numpy.{name}")
        for name in (
            "ndarray",
            "dtype",
            *(f"{core}.multiarray.{kind}" for core in ("core", "_core") for kind in ("_reconstruct", "scalar")),
        )
    ),
]


def read_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors in ``path`` whose names begin with ``prefix``, by their full names, on the CPU.

    Other tensors are not loaded if the format allows it, so they cost neither memory nor time.

    Raises:
        UserError: the file is missing, damaged, in another format, or contains objects other than weights.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
        content = _load(path)
    except Exception as error:  # a damaged pickle can raise any exception
        raise UserError(f"{path}: cannot be read as weights: {_reason(path, error)}") from None
    return {
        name: tensor
        for name, tensor in content.items()
        if isinstance(name, str) and isinstance(tensor, Tensor) and name.startswith(prefix)
    }


def _load(path: Path) -> Mapping[Any, Any]:
    mapped = zipfile.is_zipfile(path)  # files written before torch 1.6 are not, and cannot be memory-mapped
    with torch.serialization.safe_globals(IGNORED):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise TypeError(f"contains a {type(content).__name__}, not tensors by name")
    return content


def _reason(path: Path, error: Exception) -> str:
    """Return in one line why ``path`` cannot be read, without torch's advice to run the code in it."""
    if path.is_file() and path.open("rb").read(len(LFS_POINTER)) == LFS_POINTER:
        return "it is a Git LFS pointer; run `git lfs pull` to download the file"
    text = " ".join(str(error).split()) or type(error).__name__
    _, refused, name = text.partition(" GLOBAL ")
    if refused:
        return f"it contains {name.split()[0]}, which is not a weight and is not loaded; use a .safetensors file"
    if isinstance(error, pickle.UnpicklingError):
        return "it is not a torch file, or it is damaged"
    return text[:200]
