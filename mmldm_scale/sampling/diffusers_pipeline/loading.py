"""Reads the folder of a pipeline as safely as every other model: safetensors, checked settings, no code, no pickle."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from mmldm_scale.common.errors import UserError
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import stable_diffusion
from mmldm_scale.sampling.diffusers_pipeline.parts import MMLDMAutoencoder, MMLDMDiT, cast

INDEX, PIPELINE = "model_index.json", "MMLDMPipeline"
SCHEDULER, SCHEDULER_CONFIG = "scheduler", "scheduler_config.json"
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
HUB_FILES = ("*.json", "*.safetensors", "*.sha256", "README.md", "*.py")
WITHOUT_EFFECT = ("use_safetensors", "low_cpu_mem_usage")  # safetensors are all that is read
REASON_LENGTH = 200  # characters of a library's message that are repeated in an error


def load(location: str, names: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """Return the parts ``names`` of the pipeline at ``location``, a folder or a repository of the Hub.

    Args:
        options: "torch_dtype" (or "dtype"), parts to use in place of the folder's, and those of :func:`_download`.

    Raises:
        UserError: see :meth:`.pipeline.MMLDMPipeline.from_pretrained`.
    """
    known = {"torch_dtype", "dtype", *HUB_OPTIONS, *WITHOUT_EFFECT, *names}
    unknown = [name for name in options if name not in known]
    if unknown:
        raise UserError(f"{unknown[0]}: no option of MMLDMPipeline.from_pretrained; known: {', '.join(sorted(known))}")
    dtype = options.get("torch_dtype") or options.get("dtype")
    folder = Path(location)
    if not folder.is_dir():
        folder = _download(location, {name: options[name] for name in HUB_OPTIONS if name in options})
    index = read_index(folder)
    own = {name: options[name] for name in names if name in options}
    parts = {**_networks(folder, dtype, own), SCHEDULER: own.get(SCHEDULER) or _scheduler(folder)}
    if index.get("vocoder", [None])[0] and "vocoder" not in own:
        parts["vocoder"] = _vocoder(folder, parts["dit"], dtype)
    return parts | own


def read_index(folder: Path) -> dict[str, Any]:
    """Return the content of the ``model_index.json`` in ``folder``; raise UserError if it is not our pipeline's."""
    try:
        index = json.loads((folder / INDEX).read_text())
        name = index["_class_name"]
    except (OSError, ValueError, TypeError, KeyError):
        wanted = f"must have the {INDEX} that mmldm export --format diffusers writes for a dit"
        raise UserError(f"{folder}: holds no pipeline; {wanted}") from None
    if name != PIPELINE:
        raise UserError(f"{folder / INDEX}: is of {name!r:.80}, not of {PIPELINE}")
    return {key: value if isinstance(value, list) and value else [None] for key, value in index.items()}


def _networks(folder: Path, dtype: torch.dtype | None, own: dict[str, Any]) -> dict[str, Any]:
    """Return DiT, autoencoder, KL-VAE and U-Nets, without those in ``own``."""
    dit = own.get("dit") or MMLDMDiT.from_pretrained(folder / "dit", dtype)
    autoencoder, unets = MMLDMAutoencoder.load(folder / "autoencoder", dtype)
    distillation = autoencoder.model.distillation  # a distilled decoder draws from its teacher's latents
    if dit.description.autoencoder["fingerprint"] not in (
        autoencoder.fingerprint,
        distillation.teacher if distillation else None,
    ):
        raise UserError(f"{folder / 'autoencoder'}: is not of the autoencoder that made the DiT's latents")
    parts: dict[str, Any] = {"dit": dit, "autoencoder": own.get("autoencoder") or autoencoder}
    if "vae" not in own:
        parts["vae"] = stable_diffusion.load_kl_vae(folder / stable_diffusion.VAE_FOLDER)
        expected = autoencoder.description["kl_vae"]
        if any(_as_tuple(parts["vae"].config[key]) != _as_tuple(value) for key, value in expected.items()):
            raise UserError(f"{folder / stable_diffusion.VAE_FOLDER}: is not the KL-VAE of the autoencoder beside it")
    for name, unet in unets.items():
        if name not in own:
            stable_diffusion.load_whole_unet(unet, folder / name)
            parts[name] = unet.eval()
    for name in {"vae", *unets} & parts.keys():
        cast(parts[name], dtype)
    return parts


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _scheduler(folder: Path) -> SchedulerMixin:
    """Return the scheduler in ``folder``, one of diffusers' own."""
    file = folder / SCHEDULER / SCHEDULER_CONFIG
    pretrained.verify(folder / SCHEDULER)
    try:
        name = str(json.loads(file.read_text())["_class_name"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise UserError(f"{file}: _class_name is {name!r:.80}: must be a scheduler of diffusers")
    try:
        scheduler: Any = kind.from_pretrained(folder, subfolder=SCHEDULER)
    except Exception as error:  # wrong values raise anything
        reason = " ".join(str(error).split())[:REASON_LENGTH]
        raise UserError(f"{file}: does not describe a scheduler: {reason}") from None
    return scheduler


def _vocoder(folder: Path, dit: MMLDMDiT, dtype: torch.dtype | None) -> torch.nn.Module:
    from mmldm_scale.media.hifi_gan import load_generator  # imports transformers, which takes a second

    pretrained.verify(folder / "vocoder")
    generator: torch.nn.Module = load_generator(folder / "vocoder", dit.description.media.audio)
    return cast(generator, dtype)


def _download(name: str, options: dict[str, Any]) -> Path:
    """Download the repository ``name`` of the Hub, with huggingface_hub's ``options``, and return its folder."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*HUB_FILES], **options))
    except (OSError, ValueError) as error:  # huggingface_hub's own are of these
        reason = " ".join(str(error).split())[:REASON_LENGTH]
        raise UserError(f"{name}: is no folder, and cannot be downloaded from the Hub: {reason}") from None
