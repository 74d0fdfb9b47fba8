"""Exported weights in diffusers' layout: one sub-folder for each part that diffusers has a class for.

::

    vae/  unet/  scheduler/     AutoencoderKL, UNet2DConditionModel and a scheduler, as far as the model has them
    autoencoder/ or dit/        the weights folder of the whole model, for mmldm_scale

``UNet2DConditionModel.from_pretrained(folder, subfolder="unet")`` loads a part. An autoencoder with a U-Net for each
modality has ``unet_audio/`` and ``unet_video/``. A KL-VAE's weights folder has its ``vae/`` in any case, so that its
layout is the same. There is no ``model_index.json``: it would name a pipeline class, which diffusers does not have.
"""

from pathlib import Path
from typing import Any

from mmldm_scale import config
from mmldm_scale.diffusion.schedule import diffusers_scheduler
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.autoencoder.stable_diffusion import UNET_FOLDER, VAE_FOLDER

SCHEDULER = "scheduler"


def place(folder: Path, kind: str) -> Path:
    """Return the folder inside ``folder`` in which the weights folder of the whole model belongs."""
    return folder if kind == "kl_vae" else folder / kind


def write(folder: Path, kind: str) -> None:
    """Complete ``folder``, which holds the model's weights folder at its :func:`place`, to diffusers' layout."""
    for name, part in _parts(place(folder, kind), kind).items():
        if not (folder / name).exists():  # a KL-VAE's weights folder has its part
            part.save_pretrained(folder / name)


def _parts(weights: Path, kind: str) -> dict[str, Any]:
    """Return the parts of the model in ``weights`` that diffusers has classes for, by the name of their sub-folder.

    Each is a model or a scheduler of diffusers; both have ``save_pretrained``, but from no common base class.
    """
    if kind == "kl_vae":
        return {VAE_FOLDER: kl_vae.load(weights)}
    if kind == "autoencoder":
        model = Autoencoder.from_pretrained(weights)
        unets = {
            UNET_FOLDER if name == "shared" else f"{UNET_FOLDER}_{name}": unet
            for name, unet in model.decoder.unets.items()
        }
        return {VAE_FOLDER: model.kl_vae, **unets, SCHEDULER: diffusers_scheduler(model.decoder.process.config)}
    if kind == "dit":
        values = pretrained.read_config(weights, kind)["diffusion"]
        return {SCHEDULER: diffusers_scheduler(config.restore(config.DiffusionConfig, values, str(weights)))}
    return {}
