"""What DeepSpeed would write, copied into the host's memory, so that training can go on while it is written.

``HostCopy().states(engines, folder)`` has every engine say what it would write and where, and touches no disk. The
memory of the copies, as much as a rank writes, stays for the next ones: to get new pages takes longer than to copy.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmldm_scale.training.engine import deepspeed_engine
from mmldm_scale.training.engine.deepspeed_internals import Engine

State = dict[str, Any]  # what one of DeepSpeed's files holds


class HostCopy:
    """Makes copies of one instant; those of the one before are overwritten."""

    def __init__(self) -> None:
        self._storages: list[torch.UntypedStorage] = []  # in the order of use
        self._used = 0

    def states(self, parts: dict[str, Engine], folder: Path) -> dict[Path, State]:
        """Return, by file, copies of all that this rank is to write of each engine into ``folder / its name``.

        All ranks call this together. Tensors share memory as those that they are copied from, so that the files are
        the same as if these were written.
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
        return copy.deepcopy(state, memo)  # of all else, such as loss scalers

    def _host(self, source: torch.UntypedStorage) -> torch.UntypedStorage:
        """Return ``source``'s bytes in our memory: in that used at the same place the last time, if it fits."""
        if self._used == len(self._storages):
            self._storages.append(torch.UntypedStorage(0))
        if self._storages[self._used].nbytes() != source.nbytes():
            self._storages[self._used] = torch.UntypedStorage(source.nbytes())
        target = self._storages[self._used]
        self._used += 1
        return target.copy_(source)


def _plain_tensors(item: Any) -> Iterator[Tensor]:
    """Return the tensors in dictionaries, lists and tuples, but for those that have a way of their own to be copied."""
    if type(item) is Tensor and item.layout is torch.strided:
        yield item
    elif isinstance(item, dict):
        for value in item.values():
            yield from _plain_tensors(value)
    elif isinstance(item, list | tuple):
        for value in item:
            yield from _plain_tensors(value)
