"""Tensors out of the weights files that others publish: .safetensors, and torch's own without running what is in them.

A torch file (.ckpt, .pth, .bin, or HiFi-GAN's without a suffix) is a pickle, which can hold any code; it is read by
torch's weights-only unpickler, which builds tensors, containers and numbers and refuses everything else.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mmldm_scale.common.errors import UserError

WRAPPERS = ("state_dict", "generator")  # what Lightning's and HiFi-GAN's checkpoints keep their weights under
LFS_POINTER = b"version https://git-lfs"


class _Ignored:
    """Stands for an object of the training program that is of no use here; holds whatever the file gives it."""


# Stable Diffusion's and latent diffusion's own .ckpt files name this class, as a key beside the weights.
IGNORED = [(_Ignored, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]


def read_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors in ``path`` whose names begin with ``prefix``, under their whole names, on the CPU.

    Only these are read, as far as the format allows: the others of a large file cost neither memory nor time.

    Raises:
        UserError: the file is missing, damaged, of another kind, or holds objects other than weights.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
        content = _load(path)
    except Exception as error:  # a damaged pickle can raise anything at all, and it is the file's fault in every case
        raise UserError(f"{path}: cannot be read as weights: {_reason(path, error)}") from None
    return {
        name: tensor
        for name, tensor in content.items()
        if isinstance(name, str) and isinstance(tensor, Tensor) and name.startswith(prefix)
    }


def _load(path: Path) -> Mapping[Any, Any]:
    mapped = zipfile.is_zipfile(path)  # files from before torch 1.6 are not, and can only be read whole
    with torch.serialization.safe_globals(IGNORED):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise TypeError(f"holds a {type(content).__name__}, not tensors by name")
    return content


def _reason(path: Path, error: Exception) -> str:
    """Return in one line what is wrong with ``path``, without torch's advice to run the code in it."""
    if path.is_file() and path.open("rb").read(len(LFS_POINTER)) == LFS_POINTER:
        return "it is a Git LFS pointer in place of the file; `git lfs pull` brings the file"
    text = " ".join(str(error).split()) or type(error).__name__
    _, refused, name = text.partition(" GLOBAL ")
    if refused:
        return f"it holds {name.split()[0]}, which is no weight and is not run; a .safetensors file fits"
    if isinstance(error, pickle.UnpicklingError):
        return "it is no file of torch's, or a damaged one"
    return text[:200]
