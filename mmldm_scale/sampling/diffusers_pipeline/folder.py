"""Completes an exported DiT to the folder of a pipeline, which can be moved and needs nothing else.

::

    dit/  autoencoder/            weights folders of our own parts, with their provenance
    vae/  unet/                   KL-VAE and U-Net, for diffusers' own classes; or unet_audio/ and unet_video/
    scheduler/  vocoder/          the latter if one is given
    model_index.json  README.md   the pipeline's parts; the model card
    pipeline.py  mmldm_code_…/    the code, for programs without mmldm_scale
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmldm_scale.common.provenance import PROVENANCE
from mmldm_scale.diffusion.schedule import diffusers_scheduler
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.sampling.description import DiTDescription, find_autoencoder
from mmldm_scale.sampling.diffusers_pipeline import folder_code, model_card, saving
from mmldm_scale.sampling.diffusers_pipeline.parts import MMLDMAutoencoder, MMLDMDiT, unet_folder


@dataclass(frozen=True)
class Extras:
    """What the user may add to an exported DiT.

    Attributes:
        autoencoder: where the DiT's autoencoder is now; None: where it was when the latents were made.
        vocoder: a HiFi-GAN, as ``mmldm sample`` takes it; None: the pipeline uses Griffin-Lim.
        license: of the weights, an identifier of the Hub.
        name: by which the model card's example loads the pipeline.
    """

    autoencoder: Path | None = None
    vocoder: Path | None = None
    license: str = "unknown"
    name: str = "folder"


def complete(folder: Path, source: Path, extras: Extras) -> None:
    """Add to ``folder``, whose ``dit/`` is written, all other parts of the pipeline.

    Args:
        source: the weights folder that the DiT is from: its autoencoder is looked for near it, and its run beside it.

    Raises:
        UserError: there is no autoencoder, or another one; or no vocoder, or one of other mels.
    """
    place = find_autoencoder(DiTDescription.read(source), extras.autoencoder)
    dit = MMLDMDiT.from_pretrained(folder / "dit")
    model = Autoencoder.from_pretrained(place)
    parts: dict[str, Any] = {
        "dit": dit,
        "vae": model.kl_vae,
        "scheduler": diffusers_scheduler(dit.description.diffusion),
        **dict.fromkeys(("unet", "unet_audio", "unet_video", "vocoder")),
        **{unet_folder(name): unet for name, unet in model.decoder.unets.items()},
    }
    if extras.vocoder and "audio" in dit.description.shapes:
        from mmldm_scale.media.hifi_gan import load_generator  # imports transformers, which takes a second

        parts["vocoder"] = load_generator(extras.vocoder, dit.description.media.audio)
    for name, part in parts.items():
        if part is not None and name != "dit":
            part.save_pretrained(folder / name)
    parts["autoencoder"] = MMLDMAutoencoder(model, pretrained.fingerprint(place))
    parts["autoencoder"].save_pretrained(folder / "autoencoder")
    (folder / "autoencoder" / pretrained.SUMS).unlink()  # the folder's own will name its files
    if (place / PROVENANCE).is_file():
        shutil.copyfile(place / PROVENANCE, folder / "autoencoder" / PROVENANCE)
    saving.write_index(folder, parts)
    folder_code.write(folder)
    training = model_card.training_of(source)
    card = model_card.text(folder, dit.description, training, extras.license, extras.name)
    (folder / saving.CARD).write_text(card)
