"""Resuming on another number of processes or ZeRO stage: a checkpoint's partitions are divided again while loading.

ZeRO 1 to 3 concatenate the float32 weights, Adam's moments and the averages into flat tensors, and each process stores
and writes a part of each. Here every process maps all these files into memory, copies the elements that belong to it
now, and gives DeepSpeed the state that it would have written itself. So nothing is gathered or written, and a process
reads little more than what it stores. Any of the three stages may write the checkpoint, and any may load it.

DeepSpeed's universal checkpoint would first write each parameter to a file of its own, which every process reads in
full, and it leaves out buffers and every optimizer state but Adam's.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.checkpoint.constants import (
    BASE_OPTIMIZER_STATE,
    FP32_FLAT_GROUPS,
    FP32_WEIGHT_KEY,
    LOSS_SCALER,
    OPTIMIZER_STATE_DICT,
    PARAM_SHAPES,
    PARAM_SLICE_MAPPINGS,
    SINGLE_PARTITION_OF_FP32_GROUPS,
)
from torch import Tensor

from mmldm_scale.training.checkpoint.safe_pickle import mapped
from mmldm_scale.training.engine import deepspeed_internals
from mmldm_scale.training.engine.deepspeed_internals import Engine
from mmldm_scale.training.engine.distributed import World

State = dict[str, Any]  # of one process's ZeRO optimizer, as DeepSpeed writes it


@dataclass(frozen=True)
class Piece:
    """Consecutive elements of one parameter in a flat tensor of one process."""

    parameter: str
    rank: int
    flat: int  # number of the flat tensor
    offset: int  # of the first element in the flat tensor
    start: int  # of the first element in the parameter
    count: int


def load_resharded(engine: Engine, folder: Path, written_by: int, world: World) -> None:
    """Load into ``engine`` what ``written_by`` processes wrote to ``folder``; all ranks call this together.

    Parameters that the engine does not train are not changed.

    Raises:
        Exception: of any type, if the files are of another model.
    """
    parts, model = read_parts(folder, written_by), read_model(folder)
    state = _own_state(engine, parts, model[PARAM_SHAPES], world)
    engine.module.load_state_dict({name: model["module"][name] for name in model["buffer_names"]}, strict=False)
    deepspeed_internals.load_optimizer_state(engine, state, world.size)
    for counter in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, counter, model[counter])


def read_parts(folder: Path, written_by: int) -> list[State]:
    """Return the optimizer state that each of ``written_by`` processes wrote to ``folder``, mapped into memory."""
    parts = []
    for rank in range(written_by):
        (file,) = folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        parts.append(mapped(file)[OPTIMIZER_STATE_DICT])
    return parts


def read_model(folder: Path) -> dict[str, Any]:
    """Return the model state that the first process wrote to ``folder``; what is used of it is the same on all."""
    return mapped(min(folder.glob("*_model_states.pt")))


def written_pieces(parts: list[State], shapes: list[dict[str, torch.Size]]) -> dict[str, list[Piece]]:
    """Return the pieces of each parameter, by its name, in the flat tensors of ``parts``."""
    written: dict[str, list[Piece]] = {}
    for piece in _pieces_of_shapes(shapes, len(parts)) if FP32_FLAT_GROUPS in parts[0] else _pieces_of_parts(parts):
        written.setdefault(piece.parameter, []).append(piece)
    return written


def _own_state(engine: Engine, parts: list[State], shapes: list[dict], world: World) -> State:
    """Return this process's optimizer state, copied from the ``parts`` of the processes that wrote."""
    written = written_pieces(parts, shapes)
    own_pieces = list(_own_pieces(engine, world))
    tensors = [flat_tensors(part) for part in parts]
    weights, optimizer_state = [], {}
    for number, flat in enumerate(deepspeed_internals.flat_master_weights(engine)):
        pieces = [piece for piece in own_pieces if piece.flat == number]
        flat_state = {}
        for key, first in tensors[0][0].items():
            flats = [[own[key] for own in part] for part in tensors]
            is_count = first.dim() == 0  # of Adam's steps
            flat_state[key] = first.clone() if is_count else collect(pieces, written, flats, flat.numel())
        weights.append(flat_state.pop(FP32_WEIGHT_KEY))
        optimizer_state[number] = flat_state
    state = engine.optimizer.state_dict()  # of a new engine, for what depends on the number of processes
    (weights_key, optimizer_key), (_, written_key) = _keys(state), _keys(parts[0])
    state[weights_key], state[optimizer_key]["state"] = weights, optimizer_state
    groups = zip(state[optimizer_key]["param_groups"], parts[0][written_key]["param_groups"], strict=True)
    for group, written_group in groups:
        group |= {key: value for key, value in written_group.items() if key != "params"}
    return state | {key: parts[0][key] for key in (LOSS_SCALER, "dynamic_loss_scale", "overflow") if key in state}


def collect(pieces: list[Piece], written: dict[str, list[Piece]], flats: list[list[Tensor]], length: int) -> Tensor:
    """Return a flat tensor (``length``,), float32, with the ``pieces``, and zeros between them.

    Args:
        pieces: of the new tensor.
        written: by parameter, the pieces in the flat tensors of the checkpoint.
        flats: these flat tensors, (n,) each, by rank and number.
        length: number of elements.

    Raises:
        ValueError: ``written`` does not cover a piece.
    """
    result = torch.zeros(length)
    for piece in pieces:
        copied = 0
        for stored in written[piece.parameter]:
            first = max(piece.start, stored.start)
            count = min(piece.start + piece.count, stored.start + stored.count) - first
            if count > 0:
                source = flats[stored.rank][stored.flat].narrow(0, stored.offset + first - stored.start, count)
                result.narrow(0, piece.offset + first - piece.start, count).copy_(source)
                copied += count
        if copied != piece.count:
            raise ValueError(f"{piece.parameter} has {copied} of {piece.count} elements")
    return result


def _pieces_of_parts(parts: list[State]) -> Iterator[Piece]:
    """Yield where ZeRO 1 and 2 put each parameter: they divide the flat tensor, also in the middle of a parameter."""
    seen: dict[str, int] = {}
    for rank, part in enumerate(parts):
        for flat, addresses in enumerate(part[PARAM_SLICE_MAPPINGS]):
            for name, address in addresses.items():
                yield Piece(name, rank, flat, address.start, seen.get(name, 0), address.numel)
                seen[name] = seen.get(name, 0) + address.numel


def _pieces_of_shapes(shapes: list[dict[str, torch.Size]], processes: int) -> Iterator[Piece]:
    """Yield where ZeRO-3 puts each parameter: it divides each into equal shares, the last of which is padded.

    Args:
        shapes: by flat tensor, the shapes of its parameters by name, in their order.
        processes: number of shares.
    """
    for rank in range(processes):
        for flat, parameters in enumerate(shapes):
            offset = 0
            for name, shape in parameters.items():
                share = math.ceil(shape.numel() / processes)
                start = min(rank * share, shape.numel())
                yield Piece(name, rank, flat, offset, start, min(share, shape.numel() - start))
                offset += share


def _own_pieces(engine: Engine, world: World) -> Iterator[Piece]:
    """Yield the pieces that this process stores."""
    names = engine.param_names
    if engine.zero_optimization_partition_weights():
        groups = deepspeed_internals.zero3_groups(engine)
        shapes = [{names[p]: torch.Size(deepspeed_internals.whole_shape(p)) for p in group} for group in groups]
        yield from (piece for piece in _pieces_of_shapes(shapes, world.size) if piece.rank == world.rank)
        return
    for parameter, name in names.items():
        mapping = deepspeed_internals.own_fragment(parameter)
        if mapping is not None:
            in_flat, in_parameter = mapping.hp_fragment_address, mapping.lp_fragment_address
            start, count = in_parameter.start, in_parameter.numel
            yield Piece(name, world.rank, mapping.param_group_index, in_flat.start, start, count)


def flat_tensors(state: State) -> list[dict[str, Tensor]]:
    """Return, for each flat tensor, the weights and the optimizer's state of them by key."""
    weights_key, optimizer_key = _keys(state)
    optimizer_state = state[optimizer_key]["state"]
    return [
        {FP32_WEIGHT_KEY: flat, **optimizer_state.get(number, {})} for number, flat in enumerate(state[weights_key])
    ]


def _keys(state: State) -> tuple[str, str]:
    """Return the keys of the flat weights and of the optimizer's state dictionary in ``state``."""
    if FP32_FLAT_GROUPS in state:  # ZeRO-3
        return FP32_FLAT_GROUPS, OPTIMIZER_STATE_DICT
    return SINGLE_PARTITION_OF_FP32_GROUPS, BASE_OPTIMIZER_STATE
