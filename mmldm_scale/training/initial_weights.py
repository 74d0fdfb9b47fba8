"""``init=DIR``: a run that begins with the weights of another run.

:func:`build` loads them into the trainable's module before an engine divides it, so that they are the same for any
number of processes and any ZeRO stage. The weights are those of a weights folder
(:mod:`mmldm_scale.models.pretrained`): the averaged ones of a run's newest checkpoint, of a checkpoint, or exported
ones. A run that resumes from a checkpoint does not read them.

``runs/NAME/initial_weights.json`` holds the folder and its fingerprint. A run that was killed before its first
checkpoint begins anew, and may only begin with the same weights.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.checkpoint_folders import find_checkpoints
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import ShardTraining
from mmldm_scale.models import pretrained
from mmldm_scale.runs import run_log
from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.trainable import Trainable

RECORD = "initial_weights.json"
SHOWN = 8  # names or groups of names that a line lists, at most


@dataclass(frozen=True)
class Source:
    """A weights folder, verified, and its fingerprint."""

    folder: Path
    fingerprint: str


def build(build_trainable: Callable[[Any], Trainable], config: ShardTraining, world: World) -> Trainable:
    """Return ``build_trainable(config)``, with the weights of ``config.init`` unless the run has a checkpoint.

    All ranks call this together. What was loaded and what was not is added to the trainable's startup messages.

    Raises:
        UserError: there are no weights of this kind, they are damaged, or a tensor has another shape than the model's;
            or the run began with others.
    """
    trainable = build_trainable(config)
    if config.init is None:
        return trainable
    source = world.broadcast_from_rank0(_find(config, trainable.name) if world.is_rank0 else None)
    if isinstance(source, UserError):
        raise source
    if source is not None:
        trainable.startup_messages += _load(config.init, source, trainable)
    return trainable


def _find(config: ShardTraining, kind: str) -> Source | UserError | None:
    """Return the weights that the run begins with, and record them; None if it resumes from a checkpoint."""
    run = Path(config.run)
    try:
        if find_checkpoints(run):
            return None
        folder = pretrained.find(str(config.init), kind)
        pretrained.verify(folder)
        source = Source(folder, pretrained.fingerprint(folder))
        _check_same(run, source, config.restart)
        record = {"path": str(folder.absolute()), "fingerprint": source.fingerprint}
        write_whole(run / RECORD, json.dumps(record).encode() + b"\n")
        return source
    except UserError as error:
        return UserError(f"init: {error}")
    except OSError as error:
        return UserError(f"init={config.init}: cannot be read, or recorded in {run}: {error.strerror}")


def _check_same(run: Path, source: Source, restart: bool) -> None:
    """Raise UserError if ``run`` has logged steps that began with other weights."""
    if restart or not (run / RECORD).is_file() or next(run_log.read(run), None) is None:
        return
    try:
        before = json.loads((run / RECORD).read_text())
        is_same = before["fingerprint"] == source.fingerprint
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{run / RECORD}: cannot be read; give restart=true to start again from 0 samples") from None
    if not is_same:
        raise UserError(
            f"{source.folder}: holds other weights than this run began with, those of {before.get('path')}; give that "
            "folder, or restart=true to start again from 0 samples"
        )


@torch.no_grad()
def _load(init: str, source: Source, trainable: Trainable) -> list[str]:
    """Load the tensors of ``source`` that ``trainable`` has, by name; return the lines for the user."""
    layout, own = trainable.weights_layout, trainable.module.state_dict()  # which shares the module's memory
    config = pretrained.read_config(source.folder, trainable.name)
    stored = _read(source.folder / layout.file)
    names = {name.removeprefix(layout.prefix): name for name in own}  # names in the module by those in the folder
    known = [name for name in names if name in stored]
    if not known:
        raise UserError(f"init={init}: shares no tensor with this model")
    known_classes = _classes(config)
    for name in known:
        if known_classes != list(layout.classes) and re.fullmatch(layout.class_tensors, name):
            stored[name] = _by_class(stored[name], own[names[name]], known_classes, layout.classes)
    _check_shapes(init, {name: (stored[name], own[names[name]]) for name in known})
    for name in known:
        own[names[name]].copy_(stored[name])
    new = [name for name in names if name not in stored]
    lacking = [name for name in stored if name not in names and not name.startswith(layout.other_parts)]
    line = f"init: {len(known)} tensors from {source.folder} (fingerprint {source.fingerprint[:12]}…)"
    line += f"; {len(new)} new ones as initialised: {_grouped(new)}" if new else ""
    line += f"; {len(lacking)} left out, which this model lacks: {_grouped(lacking)}" if lacking else ""
    differences = [*_class_differences(known_classes, layout.classes), *layout.differences(config)]
    return [line, *([f"init: unlike in this training, there: {'; '.join(differences)}"] if differences else [])]


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[: pretrained.REASON_LENGTH]
        raise UserError(f"init: {file}: is damaged: {reason}") from None


def _check_shapes(init: str, pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Raise UserError if the two tensors (there, here) of a name differ in shape."""
    different = [name for name, (there, here) in pairs.items() if there.shape != here.shape]
    if different:
        there, here = (tuple(tensor.shape) for tensor in pairs[different[0]])
        more = f" (and {len(different) - 1} more tensors differ)" if len(different) > 1 else ""
        raise UserError(f"init={init}: {different[0]} is {there} there, but must be {here} in this model{more}")


def _classes(config: dict[str, Any]) -> list[str]:
    """Return the names of the classes in a weights folder's ``config``; none if it has none."""
    context = config.get("context")
    classes = config.get("classes", context.get("classes") if isinstance(context, dict) else None)
    return [str(name) for name in classes] if isinstance(classes, list) else []


def _by_class(stored: Tensor, own: Tensor, known: Sequence[str], classes: Sequence[str]) -> Tensor:
    """Return ``own`` with the rows of ``stored`` for the classes that both have, and for what lies behind the classes.

    Args:
        stored: (len(known) + n, …), with a row for each of the classes ``known``.
        own: (len(classes) + n, …), with a row for each of ``classes``.
    """
    if stored.shape[1:] != own.shape[1:] or len(stored) - len(known) != len(own) - len(classes):
        return stored  # is refused for its shape
    rows = own.to(stored.dtype, copy=True)
    for row, name in enumerate(classes):
        if name in known:
            rows[row] = stored[known.index(name)]
    rows[len(classes) :] = stored[len(known) :]
    return rows


def _class_differences(known: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return what differs between the class names there (``known``) and here, as parts of a line."""
    gone, new = ([name for name in one if name not in other] for one, other in ((known, classes), (classes, known)))
    parts = [f"{verb} {_listed(names)}" for verb, names in (("has classes", gone), ("lacks classes", new)) if names]
    if not parts and list(known) != list(classes):
        parts = ["has the classes in another order"]
    return [f"the model {' and '.join(parts)} (matched by name)"] if parts else []


def _grouped(names: Iterable[str]) -> str:
    """Return how many of ``names`` begin with each part up to the first dot: "control (30), embed_control (12)"."""
    return _listed([f"{part} ({count})" for part, count in Counter(name.partition(".")[0] for name in names).items()])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
