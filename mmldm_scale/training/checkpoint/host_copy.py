"""Copies of the engines' state in host memory, so that training can continue while they are written.

    states = HostCopy().states(engines, folder)  # by path; nothing is written yet

The copies need as much memory as a rank writes. It is kept for the next copies: allocating new pages takes longer than
copying.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmldm_scale.training.engine import deepspeed_engine
from mmldm_scale.training.engine.deepspeed_internals import Engine

State = dict[str, Any]  # content of one of DeepSpeed's files


class HostCopy:
    """Copies the state of the engines at one moment; the previous copies are overwritten."""

    def __init__(self) -> None:
        self._storages: list[torch.UntypedStorage] = []  # in order of use
        self._used = 0

    def states(self, parts: dict[str, Engine], folder: Path) -> dict[Path, State]:
        """Return, by file, copies of what this rank writes of each engine to ``folder / its name``.

        All ranks call this together. Copies share memory where their originals do, so that the files are the same as
        if the originals were written.
        """
        self._used = 0
        copies: dict[Path, State] = {}

        def keep(path: Path, state: State) -> None:
            copies[path] = self._copy(state)

        for tag, engine in parts.items():
            deepspeed_engine.save(engine, folder, tag, keep)
        return copies

    def _copy(self, state: State) -> State:
        storages: dict[tuple[torch.device, int, int], torch.UntypedStorage] = {}
        memo: dict[int, Any] = {}
        for tensor in _plain_tensors(state):
            source = tensor.untyped_storage()
            key = (source.device, source.data_ptr(), source.nbytes())
            if key not in storages:
                storages[key] = self._host(source)
            view = torch.empty(0, dtype=tensor.dtype)
            view.set_(storages[key], tensor.storage_offset(), tensor.size(), tensor.stride())
            memo[id(tensor)] = view.requires_grad_(tensor.requires_grad)
        return copy.deepcopy(state, memo)  # of everything else, such as loss scalers

    def _host(self, source: torch.UntypedStorage) -> torch.UntypedStorage:
        """Return a copy of ``source``, in the memory of the corresponding previous copy if that has the same size."""
        if self._used == len(self._storages):
            self._storages.append(torch.UntypedStorage(0))
        if self._storages[self._used].nbytes() != source.nbytes():
            self._storages[self._used] = torch.UntypedStorage(source.nbytes())
        target = self._storages[self._used]
        self._used += 1
        return target.copy_(source)


def _plain_tensors(item: Any) -> Iterator[Tensor]:
    """Yield the plain tensors in nested dictionaries, lists and tuples; subclasses of Tensor copy themselves."""
    if type(item) is Tensor and item.layout is torch.strided:
        yield item
    elif isinstance(item, dict):
        for value in item.values():
            yield from _plain_tensors(value)
    elif isinstance(item, list | tuple):
        for value in item:
            yield from _plain_tensors(value)
