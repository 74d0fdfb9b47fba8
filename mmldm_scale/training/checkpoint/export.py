"""``mmldm export``: weights out of a run, as a folder by itself.

They are what a checkpoint holds in ``weights/`` (the average of the first of ``training.ema_lengths``), or the trained
weights themselves, or an average of another length and time, made of those that the run kept (``ema.py``). The run
stays as it is, and no code in its files runs.
"""

import argparse
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmldm_scale.common.atomic_files import sync
from mmldm_scale.common.errors import UserError
from mmldm_scale.config.training import LONGEST_EMA, SHORTEST_EMA
from mmldm_scale.models import pretrained
from mmldm_scale.sampling import diffusers_format
from mmldm_scale.training.checkpoint import ema_snapshots, read_parameters, safe_pickle
from mmldm_scale.training.checkpoint.manifest import ENGINE, MANIFEST, WEIGHTS, DamagedCheckpoint, read_manifest, verify
from mmldm_scale.training.engine import ema
from mmldm_scale.training.engine.ema import AveragingProfile
from mmldm_scale.training.engine.optimizer import average_key, average_lengths

FARTHEST = 0.1  # that an average made of others may be off
PREFIXES: dict[str, str] = {"kl_vae": "vae.", "autoencoder": "autoencoder.", "dit": "dit."}
Value = Callable[[str], Tensor]  # of a parameter, by its name in the trained module


@dataclass(frozen=True)
class Source:
    """A weights folder, and the checkpoint in which it lies, if it lies in one."""

    weights: Path
    kind: str
    checkpoint: Path | None


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds besides its weights folder."""

    run: Path
    samples_seen: int
    parameters: read_parameters.Partitioned | read_parameters.Whole


@dataclass(frozen=True)
class Choice:
    """What the parameters are to be; ``says`` it in words."""

    says: str
    names: list[str]
    value: Value


def run(args: argparse.Namespace) -> int:
    """Write the weights that ``args`` ask for to the folder ``args.output``, whole or not at all; return 0.

    Raises:
        UserError: there are none of the kind, they are damaged, or the folder cannot be written.
    """
    output = Path(args.output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output}: is there already; another --output fits")
    source = _find(args.checkpoint)
    choice = _choose(args, source)
    state = _state(source, choice) if choice else None
    _write(output, source, state, args.format == "diffusers")
    print(f"{output}: {source.kind}, {choice.says if choice else 'averaged, as in the checkpoint'}")
    return 0


def _find(path: str) -> Source:
    """Return what ``path`` means; if it is in a checkpoint, its weights folder is verified."""
    weights = pretrained.locate(path)
    checkpoint = weights.parent if (weights.parent / MANIFEST).is_file() else None
    if checkpoint:
        _verify(checkpoint, WEIGHTS)
    return Source(weights, pretrained.read_kind(weights), checkpoint)


def _verify(checkpoint: Path, part: str) -> None:
    try:
        for name, (size, digest) in read_manifest(checkpoint).files.items():
            if Path(name).parts[0] == part:
                verify(checkpoint / name, size, digest)
    except DamagedCheckpoint as damage:
        raise UserError(f"{checkpoint}: {damage}; another checkpoint fits") from None


def _choose(args: argparse.Namespace, source: Source) -> Choice | None:
    """Return what ``args`` ask for; None: what lies in the weights folder."""
    raw = args.weights == "raw"
    if raw and args.ema is not None:
        raise UserError("--ema: raw weights are those that are not averaged; leave out --ema or --weights")
    if args.at is not None and args.ema is None:
        raise UserError("--at: is the time of an average; give --ema with it")
    if raw:
        trained = _trained(source)
        value = functools.partial(trained.parameters.tensor, key=read_parameters.MASTER)
        return Choice(f"not averaged, at {trained.samples_seen:,} samples", trained.parameters.names, value)
    return None if args.ema is None else _average(_trained(source), args.ema, args.at)


def _trained(source: Source) -> Trained:
    folder = source.checkpoint
    if folder is None:
        raise UserError(f"{source.weights}: lies in no checkpoint, so that there are no weights but these")
    _verify(folder, ENGINE)
    problem = safe_pickle.forbidden(folder, [ENGINE])
    if problem:
        raise UserError(problem)
    manifest = read_manifest(folder)
    with _readable(folder):
        parameters = read_parameters.read(folder / ENGINE, manifest.zero_stage, manifest.world_size)
    return Trained(folder.parent.parent, manifest.samples_seen, parameters)


def _average(trained: Trained, length: float, at: int | None) -> Choice:
    """Return the average of ``length`` at ``at`` samples: one that was kept, or made of those that were."""
    if not SHORTEST_EMA <= length <= LONGEST_EMA:
        raise UserError(f"--ema: {length} is no length of an average; {SHORTEST_EMA} to {LONGEST_EMA} fit")
    at = trained.samples_seen if at is None else at
    if not 0 < at <= trained.samples_seen:
        raise UserError(f"--at: {at:,} is none of the checkpoint's 1 to {trained.samples_seen:,} samples")
    kept: dict[AveragingProfile, Value] = {
        profile: ema_snapshots.EMASnapshot(path).tensor
        for profile, path in ema_snapshots.find(trained.run, until=at).items()
    }
    if at == trained.samples_seen:
        for own in average_lengths(trained.parameters.keys):
            kept[AveragingProfile(at, own)] = functools.partial(trained.parameters.tensor, key=average_key(own))
    wanted, says = AveragingProfile(at, length), f"averaged with length {length} at {at:,} samples"
    if wanted in kept:
        return Choice(says, trained.parameters.names, kept[wanted])
    coefficients, error = _combine(kept, wanted)
    says += f", made of {len(kept)} averages (off by {error:.1%})"
    parts = list(zip(coefficients, kept.values(), strict=True))
    return Choice(says, trained.parameters.names, lambda name: sum(c * value(name).double() for c, value in parts))


def _combine(kept: dict[AveragingProfile, Value], wanted: AveragingProfile) -> ema.Combination:
    if not kept:
        raise UserError(f"--at: nothing was kept up to {wanted.samples_seen:,} samples (training.ema_snapshot_every)")
    combination = ema.coefficients(list(kept), wanted)
    if combination.error > FARTHEST:
        latest = max(profile.samples_seen for profile in kept)
        lengths = ", ".join(str(length) for length in sorted({profile.length for profile in kept}))
        raise UserError(
            f"--ema: {wanted.length} at {wanted.samples_seen:,} samples would be off by {combination.error:.0%}, of "
            f"{len(kept)} averages of lengths {lengths} up to {latest:,}; what is nearer to these fits"
        )
    return combination


def _state(source: Source, choice: Choice) -> dict[str, Tensor]:
    """Return the weights folder's tensors with those of ``choice`` in their place, float32."""
    file, prefix = _file(source.weights, source.kind), PREFIXES[source.kind]
    with _readable(file):
        state = load_file(file)
    for name in choice.names:
        with _readable(source.weights.parent):
            value = choice.value(name)
        own = name.removeprefix(prefix)
        if own not in state or state[own].shape != value.shape:
            raise UserError(f"{source.weights}: has no {own} of shape {tuple(value.shape)}, as the checkpoint has")
        state[own] = value.float().contiguous()
    return state


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever a damaged or foreign file leads to into a UserError that names ``path``."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(f"{path}: is damaged, or of another model: {_line(error)}") from None


def _write(output: Path, source: Source, state: dict[str, Tensor] | None, diffusers: bool) -> None:
    """Write the weights folder of ``source`` to ``output``, whole or not at all, with ``state`` if there is one."""
    aside = output.with_name(f"{output.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        whole = diffusers_format.place(aside, source.kind) if diffusers else aside
        file = _file(whole, source.kind)
        shutil.copytree(source.weights, whole, ignore=shutil.ignore_patterns(file.name) if state else None)
        if state:
            save_file(state, file, metadata={"format": "pt"})
        if diffusers:
            diffusers_format.write(aside, source.kind)
        pretrained.share(aside)
        for path in aside.rglob("*"):
            sync(path)
        os.rename(aside, output)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{output}: cannot be written: {_line(error)}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _file(weights: Path, kind: str) -> Path:
    return weights / ("vae/diffusion_pytorch_model.safetensors" if kind == "kl_vae" else pretrained.WEIGHTS)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
