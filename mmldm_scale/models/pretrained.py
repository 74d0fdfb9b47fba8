"""Weights folders: a ``config.json`` whose ``kind`` names the model, and its weights, ``model.safetensors``.

Training writes such a folder into each checkpoint (the averaged weights, float32); sampling and the encoding of latents
read it. ``pretrained.find("runs/dit_S", "dit")`` returns the newest one of a run. No file is unpickled.

Beside the files, ``weights.sha256`` holds their sha256, as sha256sum writes it; :func:`verify` checks them before use.

A kind is the name of a trainable ("kl_vae", "autoencoder", "dit"); which ones exist, this module does not know.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmldm_scale.common.atomic_files import remembered_sha256, sha256
from mmldm_scale.common.checkpoint_folders import find_checkpoints
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.provenance import PROVENANCE

CONFIG, WEIGHTS, SUMS = "config.json", "model.safetensors", "weights.sha256"
REASON_LENGTH = 300  # characters of a library's message that are repeated in an error


def save(folder: Path, kind: str, config: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    """Write ``state``, tensors of any shape by name, and ``config`` (JSON values) as a weights folder of ``kind``.

    ``folder`` is created if needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"kind": kind, **config}, indent=2) + "\n")
    seal(folder)


def seal(folder: Path) -> None:
    """Complete ``folder``, whose weights are written: permissions, and the sha256 of each file.

    The safetensors library makes files that their owner alone may read; each gets the permissions of the config.json
    beside it.
    """
    for weights in folder.rglob("*.safetensors"):
        shutil.copymode(weights.with_name(CONFIG), weights)
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    lines = [f"{sha256(file)}  {name}\n" for name, file in files.items() if file.name != SUMS]
    (folder / SUMS).write_text("".join(lines))


def add_sum(folder: Path, file: Path) -> None:
    """Name ``file``, written into ``folder`` after the sums, in these; a folder without sums stays without."""
    if (folder / SUMS).is_file():
        with (folder / SUMS).open("a") as sums:
            sums.write(f"{sha256(file)}  {file.relative_to(folder).as_posix()}\n")


def verify(folder: Path) -> None:
    """Check the files of ``folder`` against the sums written with them, each once a process unless it changes.

    The sums are in ``folder`` or, for a part of a model, in its parent. Published weights have none.

    Raises:
        UserError: a file is missing or differs from its sha256, or the sums cannot be read.
    """
    root = next((root for root in (folder, folder.parent) if (root / SUMS).is_file()), None)
    if root is None:
        return
    sums = {root / name: digest for name, digest in _sums(root / SUMS).items()}
    for file in folder.iterdir():
        if file.suffix in (".json", ".safetensors") and file not in sums:
            raise UserError(f"{root / SUMS}: does not name {file.name}; copy or export the folder again")
    for file, digest in sums.items():
        if file.is_relative_to(folder):
            _verify(file, digest)


def _sums(file: Path) -> dict[str, str]:
    """Return the sha256 by relative path in ``file``."""
    try:
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in file.read_text().splitlines())}
    except (OSError, ValueError):
        raise UserError(f"{file}: cannot be read: each line must be a sha256, two spaces and a file name") from None
    for name in sums:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{file}: names {name!r:.80}, outside its folder")
    return sums


def _verify(file: Path, digest: str) -> None:
    try:
        if remembered_sha256(file) != digest:
            raise UserError(f"{file}: is damaged: it differs from its sha256 in {SUMS}; copy or export it again")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None


def find(path: str | Path, kind: str) -> Path:
    """Return the weights folder at ``path``, which is one itself, or a checkpoint, or a run (its newest checkpoint).

    Raises:
        UserError: there is no weights folder, or it holds a model of another kind than ``kind``.
    """
    folder = locate(path, kind)
    read_config(folder, kind)
    return folder


def locate(path: str | Path, kind: str | None = None) -> Path:
    """Return the weights folder at ``path``, as :func:`find` does, whatever its kind; ``kind`` is only for messages.

    Raises:
        UserError: there is no weights folder.
    """
    path, of_kind = Path(path), f" of kind {kind!r}" if kind else ""
    if not path.exists():
        raise UserError(f"{path}: no such folder; must be a run, checkpoint or weights folder{of_kind}")
    checkpoints = [folder / "weights" for folder in reversed(find_checkpoints(path).values())]
    for folder in (path, path / "weights", *checkpoints):
        if (folder / CONFIG).is_file():
            return folder
    places = f"{CONFIG}, weights/{CONFIG} or checkpoints/step-…/weights/{CONFIG}"
    raise UserError(f"{path}: holds no weights{of_kind}; must have {places}")


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    """Return the configuration of the weights in ``folder``, without its kind.

    Raises:
        UserError: it cannot be read, or it is of another kind than ``kind``.
    """
    stored_kind, config = _read(folder)
    if stored_kind != kind:
        raise UserError(f"{folder}: holds a model of kind {stored_kind!r}, but {kind!r} is needed here")
    return config


def read_kind(folder: Path) -> str:
    """Return the kind of the weights in ``folder``; raise UserError if its configuration cannot be read or has none."""
    kind, _ = _read(folder)
    if not isinstance(kind, str):
        raise UserError(f"{folder / CONFIG}: kind must be the name of a trainable, not {kind!r}")
    return kind


def _read(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Return the kind and the rest of the configuration in ``folder``, once it matches the sums that it may have."""
    digest = _sums(folder / SUMS).get(CONFIG) if (folder / SUMS).is_file() else None
    if digest:
        _verify(folder / CONFIG, digest)
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        return config.pop("kind", None), config
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / CONFIG}: cannot be read: {error}") from None


def load_into(module: torch.nn.Module, folder: Path) -> None:
    """Load the weights in ``folder`` into ``module``; raise UserError if they are damaged or have other shapes."""
    verify(folder)
    try:
        state = load_file(folder / WEIGHTS)
        module.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:REASON_LENGTH]
        raise UserError(f"{folder / WEIGHTS}: is damaged, or does not match its {CONFIG}: {reason}") from None


def fingerprint(path: Path) -> str:
    """Return the sha256 (64 hex digits) of all names and contents in a weights folder: the identity of a model.

    For a single file it covers that file and, if there is one, the config.json beside it. The sums beside the files and
    the provenance do not count: folders that older versions wrote have none. A process reads each file once.
    """
    if not path.is_dir():
        return fingerprint_of_files(path.parent, [path, path.with_name(CONFIG)])
    return fingerprint_of_files(path, sorted(file for file in path.rglob("*") if file.name not in (SUMS, PROVENANCE)))


def fingerprint_of_files(root: Path, paths: Iterable[Path]) -> str:
    """Return the sha256 of the names, relative to ``root``, and the contents of those of ``paths`` that are files."""
    digest = hashlib.sha256()
    for file in filter(Path.is_file, paths):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0")
        digest.update(bytes.fromhex(remembered_sha256(file)))
    return digest.hexdigest()
