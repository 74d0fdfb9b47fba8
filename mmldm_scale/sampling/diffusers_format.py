"""A weights folder in diffusers' layout: sub-folders that any diffusers program loads, and ours beside them.

::

    model_index.json            what lies where, as in a pipeline's folder
    vae/  unet/  scheduler/     AutoencoderKL, UNet2DConditionModel and a scheduler, as far as the model has them
    autoencoder/ or dit/        the whole model once more, for mmldm_scale, with what diffusers has no class for

An autoencoder with a U-Net for each modality has ``unet_audio/`` and ``unet_video/``. A KL-VAE's weights folder has
its ``vae/`` anyway.
"""

import json
from pathlib import Path

import diffusers
from diffusers import ConfigMixin

from mmldm_scale import config
from mmldm_scale.diffusion.noise_process import noise_process
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.autoencoder.stable_diffusion import UNET, VAE

INDEX, SCHEDULER = "model_index.json", "scheduler"
OURS: dict[pretrained.Kind, str] = {"autoencoder": "Autoencoder", "dit": "DiT"}


def place(folder: Path, kind: pretrained.Kind) -> Path:
    """Return where in ``folder`` the weights folder of the whole model belongs."""
    return folder / kind if kind in OURS else folder


def write(folder: Path, kind: pretrained.Kind) -> None:
    """Turn ``folder``, which holds a weights folder at its :func:`place`, into diffusers' layout."""
    parts = _parts(place(folder, kind), kind)
    for name, part in parts.items():
        if not (folder / name).exists():  # a KL-VAE's is
            part.save_pretrained(folder / name)
    index = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    if kind in OURS:
        index[kind] = ["mmldm_scale", OURS[kind]]
    header = {"_class_name": "MMLDM", "_diffusers_version": diffusers.__version__}
    (folder / INDEX).write_text(json.dumps(header | index, indent=2) + "\n")


def _parts(whole: Path, kind: pretrained.Kind) -> dict[str, ConfigMixin]:
    """Return what diffusers has classes for, by the sub-folder it belongs in."""
    if kind == "dit":
        described = pretrained.read_config(whole, kind)["diffusion"]
        return {SCHEDULER: noise_process(config.restore(config.DiffusionConfig, described, str(whole))).scheduler}
    if kind == "kl_vae":
        return {VAE: kl_vae.load(whole)}
    model = Autoencoder.from_pretrained(whole)
    unets = {UNET if name == "shared" else f"{UNET}_{name}": unet for name, unet in model.decoder.unets.items()}
    return {VAE: model.kl_vae, **unets, SCHEDULER: model.decoder.schedule}
