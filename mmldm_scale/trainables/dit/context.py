"""The DiT's context of a training sample: its class, or an embedding that somebody made of a text.

``make(config.context, …)`` returns what finds it, or None where all contexts are the null one. Embeddings come from a
safetensors file with a tensor (n ≤ context_tokens, context_width) for each name: a sample takes that of its video's
path, else that of the path's last part without suffix, else that of its label.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import ContextConfig, DiTConfig
from mmldm_scale.shards.reader import Sample

EXAMINED = 64  # tensors of a file that stand for all of them in its fingerprint


class ClassContext:
    """The class of each sample, by the number that the model knows it by."""

    def __init__(self, names: Sequence[str], known: Sequence[str]) -> None:
        """Translate indices into ``names``, of the sets that are read, into those into ``known``, the model's."""
        self._numbers = [known.index(name) if name in known else -1 for name in names]

    def of(self, sample: Sample) -> dict[str, Tensor]:
        """Return "label", (); -1 without a class. Raise ValueError if the sample's class is none of the sets'."""
        number = sample.meta.get("class")
        if number is None:
            return self.null()
        if not isinstance(number, int) or not 0 <= number < len(self._numbers):
            raise ValueError(f"of class {number!r:.80}, which is none of {len(self._numbers)}")
        return {"label": torch.tensor(self._numbers[number])}

    def null(self) -> dict[str, Tensor]:
        """Return the context of a sample that has none."""
        return null_label()


class TextContext:
    """The embedding that a file holds for each sample."""

    def __init__(self, file: str, tokens: int, width: int) -> None:
        """Look at what ``file`` holds; tensors are read when they are needed.

        Raises:
            UserError: it is missing or damaged, or one of its tensors does not have the shape (1 to ``tokens``,
                ``width``).
        """
        self.file, self._tokens, self._width = file, tokens, width
        self._names = set(self._stored.keys())
        if not self._names:
            raise UserError(f"context.embeddings={file}: holds no embedding")
        for name in sorted(self._names):
            self._check(name)

    def of(self, sample: Sample) -> dict[str, Tensor]:
        """Return "context" (context_tokens, context_width), float32, and "context_length", (): how many are used."""
        name = self.name(sample)
        if name is None:
            return self.null()
        found = self._stored.get_tensor(name).float()  # (n, W)
        context = found.new_zeros(self._tokens, self._width)
        context[: len(found)] = found
        return {"context": context, "context_length": torch.tensor(len(found))}

    def null(self) -> dict[str, Tensor]:
        """Return the context of a sample that has none: the model's null tokens stand for all of it."""
        return null_text(self._tokens, self._width)

    def name(self, sample: Sample) -> str | None:
        """Return the name of the embedding of ``sample``; None if there is none."""
        return next((name for name in _names(sample.meta) if name in self._names), None)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A sha256 (hex) over names, shapes, and the content of some tensors from all over the file."""
        digest, names = hashlib.sha256(), sorted(self._names)
        for name in names:
            part = self._stored.get_slice(name)
            digest.update(f"{name}\0{part.get_dtype()}{part.get_shape()}\0".encode())
        for name in names[:: -(-len(names) // EXAMINED)]:
            digest.update(self._stored.get_tensor(name).contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def _stored(self) -> Any:
        try:
            return safe_open(self.file, "pt")
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"context.embeddings={self.file}: cannot be read as safetensors: {reason}") from None

    def _check(self, name: str) -> None:
        part = self._stored.get_slice(name)
        shape, kind = part.get_shape(), part.get_dtype()
        rows, width = shape if len(shape) == 2 else (0, 0)
        if not (1 <= rows <= self._tokens and width == self._width and "F" in kind):
            raise UserError(
                f"context.embeddings={self.file}: {name!r:.80} is {kind} {shape}; floats of shape (n, {self._width}) "
                f"fit, n from 1 to {self._tokens} (model.context_tokens, model.context_width)"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_stored"}  # an open file


Context = ClassContext | TextContext


def null_label() -> dict[str, Tensor]:
    """Return what a sample without a class holds: "label", ()."""
    return {"label": torch.tensor(-1)}


def null_text(tokens: int, width: int) -> dict[str, Tensor]:
    """Return what a sample without a text holds: "context" (tokens, width), and "context_length", ()."""
    return {"context": torch.zeros(tokens, width), "context_length": torch.tensor(0)}


def null_context(config: ContextConfig, model: DiTConfig) -> dict[str, Tensor]:
    """Return what a sample without a context holds, by the kind of contexts that ``config`` asks for."""
    if config.kind == "class":
        return null_label()
    return null_text(model.context_tokens, model.context_width) if config.kind == "text" else {}


def make(config: ContextConfig, model: DiTConfig, names: Sequence[str], known: Sequence[str]) -> Context | None:
    """Return what finds the contexts of ``config``; ``names``: the sets' classes, ``known``: the model's.

    Raises:
        UserError: there are no classes, or the embeddings cannot be used.
    """
    if config.kind == "text":
        return TextContext(config.embeddings, model.context_tokens, model.context_width)
    if config.kind == "class":
        if not known:
            raise UserError("context.kind=class: the sets of shards have no labels; none or text fits")
        return ClassContext(names, known)
    return None


def _names(meta: dict[str, Any]) -> Iterator[str]:
    """Yield the names that the embedding of a sample with ``meta`` may have, the most particular first."""
    path, label = meta.get("path"), meta.get("label")
    if isinstance(path, str):
        yield path
        yield PurePath(path).stem
    if isinstance(label, str):
        yield label
