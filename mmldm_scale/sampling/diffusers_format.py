"""Exported weights in diffusers' layout: one sub-folder for each part that diffusers has a class for.

::

    vae/  unet/  scheduler/     AutoencoderKL, UNet2DConditionModel and a scheduler, as far as the model has them
    autoencoder/ or dit/        the weights folder of the whole model, for mmldm_scale

``UNet2DConditionModel.from_pretrained(folder, subfolder="unet")`` loads a part. An autoencoder with a U-Net for each
modality has ``unet_audio/`` and ``unet_video/``. A KL-VAE's weights folder has its ``vae/`` in any case, so that its
layout is the same. The folder of a DiT is that of a whole pipeline (:mod:`.diffusers_pipeline.folder`); the others have
no ``model_index.json``, which would name a pipeline class.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmldm_scale.common.errors import UserError
from mmldm_scale.diffusion.schedule import diffusers_scheduler
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.autoencoder.stable_diffusion import VAE_FOLDER
from mmldm_scale.sampling.diffusers_pipeline import folder as pipeline_folder
from mmldm_scale.sampling.diffusers_pipeline import hub
from mmldm_scale.sampling.diffusers_pipeline.folder import Extras
from mmldm_scale.sampling.diffusers_pipeline.parts import unet_folder

SCHEDULER = "scheduler"
DIT_OPTIONS = ("--autoencoder", "--vocoder", "--license", "--push-to-hub")  # of mmldm export: they add to a DiT


@dataclass(frozen=True)
class DiffusersFormat:
    """The layout, for :func:`mmldm_scale.training.checkpoint.export.run`; ``extras`` are added to a DiT."""

    extras: Extras = field(default_factory=Extras)

    def place(self, folder: Path, kind: str) -> Path:
        """Return the folder inside ``folder`` in which the weights folder of the whole model belongs."""
        return folder if kind == "kl_vae" else folder / kind

    def write(self, folder: Path, kind: str, source: Path) -> None:
        """Complete ``folder``, which holds the model's weights folder at :meth:`place`, to diffusers' layout.

        Args:
            source: the weights folder that the model is from.

        Raises:
            UserError: a part that the layout of a DiT needs is missing.
        """
        if kind == "dit":
            pipeline_folder.complete(folder, source, self.extras)
        for name, part in _parts(self.place(folder, kind), kind).items():
            if not (folder / name).exists():  # a KL-VAE's weights folder has its part
                part.save_pretrained(folder / name)


def layout(args: argparse.Namespace) -> DiffusersFormat | None:
    """Return the layout that the arguments of ``mmldm export`` ask for; None: our own.

    Raises:
        UserError: an option does not fit the format, or nothing can be uploaded.
    """
    values = {name: getattr(args, name[2:].replace("-", "_")) for name in DIT_OPTIONS}
    given = [name for name, value in values.items() if value is not None]
    if args.format != "diffusers":
        if given:
            raise UserError(f"{given[0]}: needs --format diffusers")
        return None
    if given:
        kind = pretrained.read_kind(pretrained.locate(args.checkpoint))
        if kind != "dit":
            raise UserError(f"{given[0]}: {args.checkpoint} is of kind {kind!r}: must be a dit, with all its parts")
    if args.push_to_hub:
        if isinstance(args.output, str):
            raise UserError(f"--push-to-hub: --output {args.output}: must be a folder, which is uploaded")
        hub.check(args.push_to_hub)
    name = args.push_to_hub or Path(args.output).name
    return DiffusersFormat(Extras(args.autoencoder, args.vocoder, args.license or Extras.license, name))


def push_to_hub(args: argparse.Namespace) -> None:
    """Upload what was exported; raise Outage if that fails."""
    print(f"uploaded to {hub.upload(args.output, args.push_to_hub)}")


def _parts(weights: Path, kind: str) -> dict[str, Any]:
    """Return the parts of the model in ``weights`` that diffusers has classes for, by the name of their sub-folder.

    Each is a model or a scheduler of diffusers; both have ``save_pretrained``, but from no common base class.
    """
    if kind == "kl_vae":
        return {VAE_FOLDER: kl_vae.load(weights)}
    if kind == "autoencoder":
        model = Autoencoder.from_pretrained(weights)
        unets = {unet_folder(name): unet for name, unet in model.decoder.unets.items()}
        return {VAE_FOLDER: model.kl_vae, **unets, SCHEDULER: diffusers_scheduler(model.decoder.process.config)}
    return {}
