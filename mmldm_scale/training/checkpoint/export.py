"""``mmldm export``: writes weights of a run to a folder of their own.

The weights are those in a checkpoint's ``weights/`` (the average of the first of ``training.ema_lengths``), the raw
trained weights, or an average of another length and time, combined from those that the run stored
(:mod:`mmldm_scale.training.engine.ema`). The run is not changed, and no code in its files is run.
"""

import argparse
import functools
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmldm_scale.common import provenance
from mmldm_scale.common.atomic_files import sync
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.provenance import Provenance
from mmldm_scale.config.training import LONGEST_EMA, SHORTEST_EMA
from mmldm_scale.models import pretrained
from mmldm_scale.shards.remote.remote_folder import RemoteFolder
from mmldm_scale.training.checkpoint import ema_snapshots, read_parameters, safe_pickle
from mmldm_scale.training.checkpoint.manifest import ENGINE, MANIFEST, WEIGHTS, DamagedCheckpoint, read_manifest, verify
from mmldm_scale.training.engine import ema
from mmldm_scale.training.engine.ema import AveragingProfile
from mmldm_scale.training.engine.optimizer import average_key, average_lengths

MAX_ERROR = 0.1  # largest relative error of a combined average (``ema.Combination.error``)
REASON_LENGTH = 200  # characters of a library's message that are repeated in an error
ReadParameter = Callable[[str], Tensor]  # from its name in the trained module


class FolderLayout(Protocol):
    """Another library's layout of an exported folder, such as :mod:`mmldm_scale.sampling.diffusers_format`."""

    def place(self, folder: Path, kind: str) -> Path:
        """Return the folder inside ``folder`` for the weights folder of the whole model."""

    def write(self, folder: Path, kind: str, source: Path) -> None:
        """Write the other files of the layout into ``folder``, which holds the weights folder at :meth:`place`.

        ``source`` is the weights folder in the run that the model is from.
        """


@dataclass(frozen=True)
class Source:
    """A weights folder of ``kind``, and the checkpoint that contains it, if any."""

    weights: Path
    kind: str
    checkpoint: Path | None


@dataclass(frozen=True)
class TrainedState:
    """The trained parameters in a checkpoint's ``engine`` folder."""

    run: Path
    samples_seen: int
    parameters: read_parameters.Partitioned | read_parameters.Whole


@dataclass(frozen=True)
class Replacement:
    """The parameters that are exported instead of those in the weights folder; ``description`` is for the user.

    They are those at ``samples_seen``, or their average of ``length`` that ends there.
    """

    description: str
    samples_seen: int
    length: float | None
    names: list[str]
    read: ReadParameter


def run(args: argparse.Namespace, prefixes: Mapping[str, str], layout: FolderLayout | None = None) -> int:
    """Write the weights that ``args`` name to the folder ``args.output``, whole or not at all; return 0.

    Args:
        prefixes: by kind of weights, what the names of its parameters begin with in the trained module.
        layout: of the folder; None: a weights folder (:mod:`mmldm_scale.models.pretrained`).

    Raises:
        UserError: the checkpoint does not have these weights, they are damaged, or the folder cannot be written.
    """
    remote = RemoteFolder(args.output) if isinstance(args.output, str) else None
    _check_output(args.output, remote)
    source = _open_source(args.checkpoint)
    replacement = _replacement(args, source)
    state = _replaced_state(source, replacement, prefixes) if replacement else None
    origin = provenance.read(source.weights)  # None: the checkpoint is of an older version
    if origin and replacement:
        origin = origin.of_other_weights(replacement.samples_seen, replacement.length)
    if remote is None:
        _write(args.output, source, state, origin, layout)
    else:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder) / "weights", source, state, origin, layout)
            _upload(Path(folder) / "weights", remote)
    description = replacement.description if replacement else "averaged, as in the checkpoint"
    print(f"{args.output}: {source.kind}, {description}")
    for line in origin.lines() if origin else ():
        print(f"  {line}")
    return 0


def _check_output(output: Path | str, remote: RemoteFolder | None) -> None:
    """Raise UserError unless ``output``, which is ``remote`` if it is a URL, can be written and holds no export yet."""
    if remote is not None:
        if pretrained.SUMS in remote.names():
            raise UserError(f"--output: {output} holds exported weights; give another URL")
        remote.check_writable()
    elif Path(output).exists() and not (Path(output).is_dir() and not any(Path(output).iterdir())):
        raise UserError(f"--output: {output} must be missing or an empty folder")


def _upload(folder: Path, remote: RemoteFolder) -> None:
    """Upload the files of ``folder``, their sums last: until then, the same command replaces what is there.

    Raises:
        UserError: there are other files, or the URL cannot be written.
    """
    foreign = [name for name in remote.names() if not (folder / name).exists()]
    if foreign:
        raise UserError(f"--output: {remote.url} holds other files ({foreign[0]}, …); give a URL with nothing below")
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    for name in sorted(names, key=lambda name: (name == pretrained.SUMS, name)):
        remote.put(folder / name, name)


def _open_source(path: Path) -> Source:
    """Return the weights folder at ``path``, verified."""
    weights = pretrained.locate(path)
    checkpoint = weights.parent if (weights.parent / MANIFEST).is_file() else None
    if checkpoint:
        _verify(checkpoint, WEIGHTS)
    else:
        pretrained.verify(weights)
    return Source(weights, pretrained.read_kind(weights), checkpoint)


def _verify(checkpoint: Path, part: str) -> None:
    """Raise UserError unless the files in the folder ``part`` of ``checkpoint`` are as its manifest says."""
    try:
        for name, (size, digest) in read_manifest(checkpoint).files.items():
            if Path(name).parts[0] == part:
                verify(checkpoint / name, size, digest)
    except DamagedCheckpoint as damage:
        raise UserError(f"{checkpoint}: {damage}; export another checkpoint of the run") from None


def _replacement(args: argparse.Namespace, source: Source) -> Replacement | None:
    """Return the parameters that ``args`` name; None: those in the weights folder."""
    raw = args.weights == "raw"
    if raw and args.ema is not None:
        raise UserError("--ema: must be left out with --weights raw, which are not averaged")
    if args.at is not None and args.ema is None:
        raise UserError("--at: needs --ema, the length of the average that ends there")
    if raw:
        trained = _read_trained(source)
        read = functools.partial(trained.parameters.tensor, key=read_parameters.MASTER)
        description = f"not averaged, at {trained.samples_seen:,} samples"
        return Replacement(description, trained.samples_seen, None, trained.parameters.names, read)
    return None if args.ema is None else _average(_read_trained(source), args.ema, args.at)


def _read_trained(source: Source) -> TrainedState:
    """Return the trained parameters beside the weights folder, verified and without code."""
    folder = source.checkpoint
    if folder is None:
        raise UserError(f"{source.weights}: is in no checkpoint, which --weights raw and --ema read")
    _verify(folder, ENGINE)
    problem = safe_pickle.forbidden(folder, [ENGINE])
    if problem:
        raise UserError(problem)
    manifest = read_manifest(folder)
    with _readable(folder):
        parameters = read_parameters.read(folder / ENGINE, manifest.zero_stage, manifest.world_size)
    return TrainedState(folder.parent.parent, manifest.samples_seen, parameters)


def _average(trained: TrainedState, length: float, at: int | None) -> Replacement:
    """Return the average of ``length`` at ``at`` samples (None: all): a stored one, or a combination of stored ones."""
    if not SHORTEST_EMA <= length <= LONGEST_EMA:
        raise UserError(f"--ema: {length} must be from {SHORTEST_EMA} to {LONGEST_EMA}")
    at = trained.samples_seen if at is None else at
    if not 0 < at <= trained.samples_seen:
        raise UserError(f"--at: {at:,} must be from 1 to {trained.samples_seen:,}, the samples of the checkpoint")
    stored: dict[AveragingProfile, ReadParameter] = {
        profile: ema_snapshots.EMASnapshot(path).tensor
        for profile, path in ema_snapshots.find(trained.run, until=at).items()
    }
    if at == trained.samples_seen:
        for own_length in average_lengths(trained.parameters.keys):
            read = functools.partial(trained.parameters.tensor, key=average_key(own_length))
            stored[AveragingProfile(at, own_length)] = read
    target, description = AveragingProfile(at, length), f"averaged with length {length} at {at:,} samples"
    if target in stored:
        return Replacement(description, at, length, trained.parameters.names, stored[target])
    coefficients, error = _combine(list(stored), target)
    description += f", combined from {len(stored)} averages (error {error:.1%})"
    parts = list(zip(coefficients, stored.values(), strict=True))

    def combined(name: str) -> Tensor:
        return functools.reduce(torch.add, (factor * read(name).double() for factor, read in parts))

    return Replacement(description, at, length, trained.parameters.names, combined)


def _combine(stored: list[AveragingProfile], target: AveragingProfile) -> ema.Combination:
    """Return the combination of ``stored`` that is closest to ``target``; raise UserError if it is not close."""
    if not stored:
        raise UserError(
            f"--at: the run stored no average up to {target.samples_seen:,} samples; training.ema_snapshot_every is "
            "the interval at which it does"
        )
    combination = ema.coefficients(stored, target)
    if combination.error > MAX_ERROR:
        latest = max(profile.samples_seen for profile in stored)
        lengths = ", ".join(str(length) for length in sorted({profile.length for profile in stored}))
        raise UserError(
            f"--ema: {target.length} at {target.samples_seen:,} samples has an error of {combination.error:.0%}; "
            f"it must be nearer to one of the {len(stored)} averages of lengths {lengths} up to {latest:,}"
        )
    return combination


def _replaced_state(source: Source, replacement: Replacement, prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the weights folder's tensors, float32, with those of ``replacement`` instead of its own."""
    if source.kind not in prefixes:
        raise UserError(f"{source.weights}: kind {source.kind!r} must be one of {', '.join(prefixes)}")
    file, prefix = _weights_file(source.weights, source.kind), prefixes[source.kind]
    with _readable(file):
        state = load_file(file)
    for name in replacement.names:
        with _readable(source.weights.parent):
            value = replacement.read(name)
        exported_name = name.removeprefix(prefix)
        if exported_name not in state or state[exported_name].shape != value.shape:
            raise UserError(
                f"{source.weights}: has no {exported_name} of shape {tuple(value.shape)}, which the checkpoint has"
            )
        state[exported_name] = value.float().contiguous()
    return state


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise whatever a damaged file or one of another model leads to as a UserError that names ``path``."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(f"{path}: is damaged, or of another model: {_one_line(error)}") from None


def _write(
    output: Path,
    source: Source,
    state: dict[str, Tensor] | None,
    origin: Provenance | None,
    layout: FolderLayout | None,
) -> None:
    """Write ``source`` to ``output``, whole or not at all; ``state``: instead of its own tensors."""
    temporary = output.with_name(f"{output.name}.{secrets.token_hex(4)}.tmp")
    try:
        weights = layout.place(temporary, source.kind) if layout else temporary
        file = _weights_file(weights, source.kind)
        others = shutil.ignore_patterns(pretrained.SUMS, *([file.name] if state else []))
        shutil.copytree(source.weights, weights, ignore=others)
        if state:
            save_file(state, file, metadata={"format": "pt"})
        if origin:
            provenance.write(weights, origin)
        if layout:
            layout.write(temporary, source.kind, source.weights)
        pretrained.seal(temporary)
        for path in temporary.rglob("*"):
            sync(path)
        os.rename(temporary, output)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{output}: cannot be written: {_one_line(error)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _weights_file(weights: Path, kind: str) -> Path:
    return weights / ("vae/diffusion_pytorch_model.safetensors" if kind == "kl_vae" else pretrained.WEIGHTS)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:REASON_LENGTH]
