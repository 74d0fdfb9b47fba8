"""Latents that another program wrote: one tensor per clip and modality, in .npy, .pt or .safetensors files.

    names = LatentNames("{key}.audio", "{key}.video", "{key}.mirrored")
    read_tensor(folder, "cat_1.video.npy", "", {(16, 16, 16), (32, 16, 16)})

No file can run code: arrays are read without pickles, torch's files with its weights-only unpickler, and a tensor's
shape is compared before its values are read.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.shards.latents import PARTS

SUFFIXES = (".npy", ".pt", ".safetensors")
FILE_LIMIT = 1 << 26  # bytes of a file: the latents of a clip take some 100 KB

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LatentNames:
    """How the files of a clip are called: paths below the input, without suffix, with "{key}" for the clip.

    ":name" at the end says which tensor of the file is meant, as in "{key}:audio".
    """

    audio: str = "{key}.audio"
    video: str = "{key}.video"
    mirrored: str = "{key}.mirrored"

    def __post_init__(self) -> None:
        for part in PARTS:
            if self.of(part)[0].count("{key}") != 1:
                raise UserError(f"--{part} {getattr(self, part)}: must contain {{key}} once, as in {{key}}.{part}")

    def of(self, part: str) -> tuple[str, str]:
        """Return the pattern of the files of ``part``, and the name of the tensor in them ("": the only one)."""
        pattern, _, tensor = getattr(self, part).partition(":")
        return pattern, tensor

    def find(self, paths: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return for each key of ``paths`` (sorted) its files, by part."""
        patterns = {part: _regex(self.of(part)[0]) for part in PARTS}
        found: dict[str, dict[str, str]] = {}
        for path in paths:
            for part, pattern in patterns.items():
                match = pattern.fullmatch(path)
                if match is not None:
                    found.setdefault(match["key"], {}).setdefault(part, path)
        return found


class UnreadableLatents(Exception):
    """A file holds no such tensor, or cannot be read; the message says why."""


class OtherShape(Exception):
    """A tensor has another shape than those that fit; the message has it."""


def read_tensor(folder: Path, path: str, name: str, shapes: Collection[Shape]) -> np.ndarray:
    """Return the tensor ``name`` ("": the only one) of a file as float32, in one of ``shapes``; leading ones are cut.

    Raises:
        UnreadableLatents: the file is too large, damaged, or has no such tensor of floats.
        OtherShape: none of ``shapes``.
    """
    file = folder / path
    try:
        if file.stat().st_size > FILE_LIMIT:
            raise UnreadableLatents(f"has more than {FILE_LIMIT:,} bytes")
        tensor = _READERS[file.suffix.lower()](file, name)
    except UnreadableLatents:
        raise
    except Exception as error:  # a damaged pickle or archive can raise any exception
        raise UnreadableLatents(f"cannot be read: {' '.join(str(error).split())[:200]}") from None
    shape = tuple(tensor.shape)
    while len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    if shape not in shapes:
        raise OtherShape("×".join(map(str, tensor.shape)))
    if not tensor.is_floating_point():
        raise UnreadableLatents(f"holds {tensor.dtype}, not floats")
    return tensor.reshape(shape).to(torch.float32).contiguous().numpy()


def _regex(pattern: str) -> re.Pattern[str]:
    before, _, after = pattern.partition("{key}")
    suffixes = "|".join(map(re.escape, SUFFIXES))
    return re.compile(f"{re.escape(before)}(?P<key>.+){re.escape(after)}(?:{suffixes})", re.IGNORECASE | re.DOTALL)


def _read_npy(file: Path, name: str) -> Tensor:
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise UnreadableLatents("is no array of floats")
    return torch.from_numpy(array.astype(np.float64))


def _read_torch(file: Path, name: str) -> Tensor:
    content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, dict):
        content = content.get(name) if name else next(iter(content.values())) if len(content) == 1 else None
    if not isinstance(content, Tensor) or content.layout != torch.strided:
        raise UnreadableLatents(f"holds no tensor{f' called {name}' if name else ' alone'}")
    return content


def _read_safetensors(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as content:
        names = list(content.keys())
        if (name not in names) if name else len(names) != 1:
            raise UnreadableLatents(f"holds {', '.join(names)[:100]}, not {name or 'one tensor'}")
        return content.get_tensor(name or names[0])


_READERS = {".npy": _read_npy, ".pt": _read_torch, ".safetensors": _read_safetensors}
