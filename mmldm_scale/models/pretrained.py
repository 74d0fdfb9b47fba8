"""Weights on disk: a folder with ``config.json`` (its ``kind`` says which model) and ``model.safetensors``.

Training writes such a folder into each checkpoint (the averaged weights, float32); sampling and the latent encoder read
it. Nothing here unpickles anything.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError

Kind = Literal["kl_vae", "autoencoder", "dit"]
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save(folder: Path, kind: Kind, config: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    """Write ``state`` and ``config`` (plain JSON values) as the weights folder ``folder``, made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"kind": kind, **config}, indent=2) + "\n")
    share(folder)


def share(folder: Path) -> None:
    """Let all who may read a config.json in ``folder`` read the weights beside it, else kept private."""
    for weights in folder.rglob("*.safetensors"):
        shutil.copymode(weights.with_name(CONFIG), weights)


def find(path: str | Path, kind: Kind) -> Path:
    """Return the weights folder that ``path`` means: itself, or that of a checkpoint, or of a run's newest checkpoint.

    Raises:
        UserError: there is none, or it holds a model of another kind.
    """
    folder = locate(path, kind)
    read_config(folder, kind)
    return folder


def locate(path: str | Path, kind: str = "model's") -> Path:
    """Return the weights folder that ``path`` means, as :func:`find` does, whatever it holds.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if not path.exists():
        article = "an" if kind.startswith("a") else "a"
        raise UserError(f"{path}: no such folder; {article} {kind} run, checkpoint or weights folder fits")
    newest = sorted(path.glob("checkpoints/step-*[0-9]/weights"), reverse=True)
    for folder in (path, path / "weights", *newest):
        if (folder / CONFIG).is_file():
            return folder
    raise UserError(f"{path}: holds no {kind} weights (neither {CONFIG} nor checkpoints/step-…/weights/{CONFIG})")


def read_config(folder: Path, kind: Kind) -> dict[str, Any]:
    """Return the configuration of the weights in ``folder``; raise UserError if they are of another kind."""
    found, config = _read(folder)
    if found != kind:
        raise UserError(f"{folder}: holds a model of kind {found!r}, but {kind!r} is needed here")
    return config


def read_kind(folder: Path) -> Kind:
    """Return of which kind the weights in ``folder`` are; raise UserError if of none of ours."""
    found, _ = _read(folder)
    if found not in get_args(Kind):
        raise UserError(f"{folder}: holds a model of kind {found!r}, which is none of {', '.join(get_args(Kind))}")
    return found


def _read(folder: Path) -> tuple[Any, dict[str, Any]]:
    try:
        config = json.loads((folder / CONFIG).read_text())
        return config.pop("kind", None), config
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / CONFIG}: cannot be read: {error}") from None


def load_into(module: torch.nn.Module, folder: Path) -> None:
    """Load the weights in ``folder`` into ``module``; raise UserError if they are damaged or of another shape."""
    try:
        state = load_file(folder / WEIGHTS)
        module.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder / WEIGHTS}: does not fit its {CONFIG}, or is damaged: {reason}") from None


def fingerprint(path: Path) -> str:
    """Return the sha256 (hex) over everything in a weights folder, names included: the identity of a model.

    Of a single file it is over that and the configuration beside it, if there is one.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path, path.with_name(CONFIG)]
    root = path if path.is_dir() else path.parent
    digest = hashlib.sha256()
    for file in filter(Path.is_file, files):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0")
        digest.update(bytes.fromhex(sha256(file)))
    return digest.hexdigest()
