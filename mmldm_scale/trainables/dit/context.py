"""The context of a DiT's training sample: its class, or a text embedding.

    source = build_context(config.context, config.model, set_classes, model_classes)
    source.read(sample)  # {"label": …}, or {"context": …, "context_length": …}

Text embeddings come from a safetensors file with one tensor (n, context_width), 1 ≤ n ≤ context_tokens, for each name.
A sample's embedding is the one named after its video's path, else after the file name without suffix, else after its
label.
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

FINGERPRINTED = 64  # tensors of a file whose content enters its fingerprint, at most


class ClassContext:
    """The class of each sample, as an index into the model's classes."""

    def __init__(self, set_classes: Sequence[str], model_classes: Sequence[str]) -> None:
        """Map indices into ``set_classes``, those of the shard sets, to indices into ``model_classes``."""
        self._labels = [model_classes.index(name) if name in model_classes else -1 for name in set_classes]

    def read(self, sample: Sample) -> dict[str, Tensor]:
        """Return the class of ``sample``.

        Returns:
            "label", () int64: an index into the model's classes, or -1 if the sample has no class or one that the model
            does not have.

        Raises:
            ValueError: the sample's class is no index into the classes of the sets.
        """
        index = sample.meta.get("class")
        if index is None:
            return self.null()
        if not isinstance(index, int) or not 0 <= index < len(self._labels):
            raise ValueError(f"class: {index!r:.80} must be an index into the set's {len(self._labels)} classes")
        return {"label": torch.tensor(self._labels[index])}

    def null(self) -> dict[str, Tensor]:
        """Return the context of a sample that has none."""
        return null_label()


class TextContext:
    """The text embedding of each sample, from a file."""

    def __init__(self, file: str, tokens: int, width: int) -> None:
        """Check the shapes of all tensors in ``file``; their content is read sample by sample.

        Raises:
            UserError: the file is missing, damaged or empty, or a tensor does not have the shape (n, ``width``) with n
                from 1 to ``tokens``.
        """
        self.file, self._tokens, self._width = file, tokens, width
        self._names = set(self._tensors.keys())
        if not self._names:
            raise UserError(f"context.embeddings={file}: contains no embedding")
        for name in sorted(self._names):
            self._check(name)

    def read(self, sample: Sample) -> dict[str, Tensor]:
        """Return the embedding of ``sample``.

        Returns:
            "context" (context_tokens, context_width) float32, padded with zeros, and "context_length", () int64, the
            number of tokens that are not padding.
        """
        name = self.name(sample)
        if name is None:
            return self.null()
        embedding = self._tensors.get_tensor(name).float()  # (n, W)
        context = embedding.new_zeros(self._tokens, self._width)
        context[: len(embedding)] = embedding
        return {"context": context, "context_length": torch.tensor(len(embedding))}

    def null(self) -> dict[str, Tensor]:
        """Return the context of a sample that has none; the model replaces it by its null tokens."""
        return null_text(self._tokens, self._width)

    def name(self, sample: Sample) -> str | None:
        """Return the name of the embedding of ``sample``, or None if there is no such embedding."""
        return next((name for name in _names(sample.meta) if name in self._names), None)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A sha256 (hex) of all names, types and shapes and of the content of tensors spread over the file."""
        digest, names = hashlib.sha256(), sorted(self._names)
        for name in names:
            part = self._tensors.get_slice(name)
            digest.update(f"{name}\0{part.get_dtype()}{part.get_shape()}\0".encode())
        for name in names[:: -(-len(names) // FINGERPRINTED)]:
            digest.update(self._tensors.get_tensor(name).contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def _tensors(self) -> Any:
        """The open file; each process opens its own."""
        try:
            return safe_open(self.file, "pt")
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"context.embeddings={self.file}: cannot be read as safetensors: {reason}") from None

    def _check(self, name: str) -> None:
        part = self._tensors.get_slice(name)
        shape, dtype = part.get_shape(), part.get_dtype()
        rows, width = shape if len(shape) == 2 else (0, 0)
        if not (1 <= rows <= self._tokens and width == self._width and "F" in dtype):
            raise UserError(
                f"context.embeddings={self.file}: {name!r:.80} is {dtype} {shape}; must be floats of shape "
                f"(n, {self._width}) with n from 1 to {self._tokens} (model.context_width, model.context_tokens)"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_tensors"}  # not the open file


Context = ClassContext | TextContext


def null_label() -> dict[str, Tensor]:
    """Return the context of a sample without a class: "label", (), which is -1."""
    return {"label": torch.tensor(-1)}


def null_text(tokens: int, width: int) -> dict[str, Tensor]:
    """Return the context of a sample without a text: "context" (tokens, width) and "context_length" (), both zero."""
    return {"context": torch.zeros(tokens, width), "context_length": torch.tensor(0)}


def null_context(config: ContextConfig, model: DiTConfig) -> dict[str, Tensor]:
    """Return the context of a sample without one, for the kind of contexts in ``config``."""
    if config.kind == "class":
        return null_label()
    return null_text(model.context_tokens, model.context_width) if config.kind == "text" else {}


def build_context(
    config: ContextConfig, model: DiTConfig, set_classes: Sequence[str], model_classes: Sequence[str]
) -> Context | None:
    """Return the source of the contexts of ``config``, or None if no sample has a context.

    Args:
        set_classes: names of the classes of the shard sets.
        model_classes: names of the classes of the model.

    Raises:
        UserError: the model has no classes, or the embeddings are missing, damaged or of another shape.
    """
    if config.kind == "text":
        return TextContext(config.embeddings, model.context_tokens, model.context_width)
    if config.kind == "class":
        if not model_classes:
            raise UserError("context.kind=class: the shard sets have no labels; must be none or text")
        return ClassContext(set_classes, model_classes)
    return None


def _names(meta: dict[str, Any]) -> Iterator[str]:
    """Yield the names that the embedding of a sample with ``meta`` may have, the most specific first."""
    path, label = meta.get("path"), meta.get("label")
    if isinstance(path, str):
        yield path
        yield PurePath(path).stem
    if isinstance(label, str):
        yield label
