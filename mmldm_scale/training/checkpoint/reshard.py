"""Resuming on another number of processes: ZeRO's partitions of a checkpoint are divided anew while they are loaded.

ZeRO 1 to 3 lay the float32 weights, Adam's moments and the averages end to end in flat tensors, and each process keeps
and writes a part of each. Here every process maps all those files into memory, finds the elements that are its own now,
copies them, and gives DeepSpeed the state that it would itself have written. So no state is gathered or written, and a
process reads little more than what it keeps. Any of the three stages may have written the checkpoint, and any may load
it.

DeepSpeed's universal checkpoint would first write each parameter to files of its own, for every process to read in
full, and leaves out the buffers and every state but Adam's.
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
    """Load what ``written_by`` processes wrote of an engine into ``folder``; all ranks call this together.

    Parameters that the engine does not train stay as they are.

    Raises:
        Exception: of many kinds, if the files are of another model.
    """
    parts, model = read_parts(folder, written_by), read_model(folder)
    state = _own_state(engine, parts, model[PARAM_SHAPES], world)
    engine.module.load_state_dict({name: model["module"][name] for name in model["buffer_names"]}, strict=False)
    deepspeed_internals.load_optimizer_state(engine, state, world.size)
    for counter in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, counter, model[counter])


def read_parts(folder: Path, written_by: int) -> list[State]:
    """Return what each of ``written_by`` processes wrote of its optimizer into ``folder``, mapped into memory."""
    parts = []
    for rank in range(written_by):
        (file,) = folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        parts.append(mapped(file)[OPTIMIZER_STATE_DICT])
    return parts


def read_model(folder: Path) -> dict[str, Any]:
    """Return what the first process wrote of its model into ``folder``; of what is used, the others' say the same."""
    return mapped(min(folder.glob("*_model_states.pt")))


def written_pieces(parts: list[State], shapes: list[dict[str, torch.Size]]) -> dict[str, list[Piece]]:
    """Return by parameter where the flat tensors of ``parts`` hold it."""
    written: dict[str, list[Piece]] = {}
    for piece in _pieces_of_shapes(shapes, len(parts)) if FP32_FLAT_GROUPS in parts[0] else _pieces_of_parts(parts):
        written.setdefault(piece.parameter, []).append(piece)
    return written


def _own_state(engine: Engine, parts: list[State], shapes: list[dict], world: World) -> State:
    """Return this process's state, cut from the ``parts`` of those that wrote."""
    written = written_pieces(parts, shapes)
    wanted = list(_own_pieces(engine, world))
    tensors = [flat_tensors(part) for part in parts]
    weights, kept = [], {}
    for number, flat in enumerate(deepspeed_internals.flat_master_weights(engine)):
        mine = [piece for piece in wanted if piece.flat == number]
        cut = {}
        for key, first in tensors[0][0].items():
            flats = [[own[key] for own in part] for part in tensors]
            cut[key] = collect(mine, written, flats, flat.numel()) if first.dim() else first.clone()  # a count of steps
        weights.append(cut.pop(FP32_WEIGHT_KEY))
        kept[number] = cut
    state = engine.optimizer.state_dict()  # of a new engine: right in all that depends on the number of processes
    (weights_key, optimizer_key), (_, then_key) = _keys(state), _keys(parts[0])
    state[weights_key], state[optimizer_key]["state"] = weights, kept
    for now, then in zip(state[optimizer_key]["param_groups"], parts[0][then_key]["param_groups"], strict=True):
        now |= {key: value for key, value in then.items() if key != "params"}
    return state | {key: parts[0][key] for key in (LOSS_SCALER, "dynamic_loss_scale", "overflow") if key in state}


def collect(wanted: list[Piece], written: dict[str, list[Piece]], flats: list[list[Tensor]], length: int) -> Tensor:
    """Return a flat tensor of ``length`` with the ``wanted`` pieces, zero between them.

    Args:
        wanted: What it is to hold.
        written: By parameter, what the flat tensors hold.
        flats: The flat tensors by rank and number.
        length: Number of elements.
    """
    to = torch.zeros(length)
    for mine in wanted:
        found = 0
        for theirs in written[mine.parameter]:
            first = max(mine.start, theirs.start)
            count = min(mine.start + mine.count, theirs.start + theirs.count) - first
            if count > 0:
                source = flats[theirs.rank][theirs.flat].narrow(0, theirs.offset + first - theirs.start, count)
                to.narrow(0, mine.offset + first - mine.start, count).copy_(source)
                found += count
        if found != mine.count:
            raise ValueError(f"{mine.parameter} has {found} of {mine.count} elements")
    return to


def _pieces_of_parts(parts: list[State]) -> Iterator[Piece]:
    """Return where ZeRO 1 and 2 put each parameter: they cut the flat tensor, wherever that falls in a parameter."""
    seen: dict[str, int] = {}
    for rank, part in enumerate(parts):
        for flat, addresses in enumerate(part[PARAM_SLICE_MAPPINGS]):
            for name, address in addresses.items():
                yield Piece(name, rank, flat, address.start, seen.get(name, 0), address.numel)
                seen[name] = seen.get(name, 0) + address.numel


def _pieces_of_shapes(shapes: list[dict[str, torch.Size]], processes: int) -> Iterator[Piece]:
    """Return where ZeRO-3 puts each parameter: it cuts every one into equal shares, the last of them padded.

    Args:
        shapes: By flat tensor, the shapes of its parameters by name, in their order.
        processes: Between how many they are divided.
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
    """Return the pieces that this process keeps."""
    names = engine.param_names
    if engine.zero_optimization_partition_weights():
        groups = deepspeed_internals.zero3_groups(engine)
        shapes = [{names[p]: torch.Size(deepspeed_internals.whole_shape(p)) for p in group} for group in groups]
        yield from (piece for piece in _pieces_of_shapes(shapes, world.size) if piece.rank == world.rank)
        return
    for parameter, name in names.items():
        mapping = deepspeed_internals.own_fragment(parameter)
        if mapping is not None:
            kept, part = mapping.hp_fragment_address, mapping.lp_fragment_address
            yield Piece(name, world.rank, mapping.param_group_index, kept.start, part.start, part.numel)


def flat_tensors(state: State) -> list[dict[str, Tensor]]:
    """Return, by flat tensor, the weights and what the optimizer keeps for them."""
    weights_key, optimizer_key = _keys(state)
    kept = state[optimizer_key]["state"]
    return [{FP32_WEIGHT_KEY: flat, **kept.get(number, {})} for number, flat in enumerate(state[weights_key])]


def _keys(state: State) -> tuple[str, str]:
    """Return under which keys ``state`` holds the flat weights, and the optimizer's state dictionary."""
    if FP32_FLAT_GROUPS in state:  # ZeRO-3
        return FP32_FLAT_GROUPS, OPTIMIZER_STATE_DICT
    return SINGLE_PARTITION_OF_FP32_GROUPS, BASE_OPTIMIZER_STATE
