"""The parts of the pipeline that diffusers has no class for: the DiT, and the autoencoder without KL-VAE and U-Nets.

diffusers loads, saves, casts and moves them as it does its own models. Their folders are weights folders
(:mod:`mmldm_scale.models.pretrained`): safetensors, read without running code.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin  # diffusers also looks for this name in this module
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder.model import Autoencoder, build
from mmldm_scale.models.dit import DiT
from mmldm_scale.sampling.description import DiTDescription

Module = TypeVar("Module", bound=torch.nn.Module)

AUTOENCODER_PART = "autoencoder_part"  # kind of the weights folder of an MMLDMAutoencoder
UNET = "unet"
FINGERPRINT = "fingerprint"  # key of its config.json: of the whole autoencoder that it is a part of


class MMLDMDiT(ModelMixin):
    """The DiT with all that sampling needs to know of it.

    Attributes:
        description: shapes, noise process, statistics of the latents, media, classes.
    """

    def __init__(self, description: DiTDescription) -> None:
        super().__init__()
        self.description = description
        self.stored = pretrained.read_config(description.folder, "dit")
        model = replace(description.model, attention="auto", compile=False)
        self.dit = DiT(model, description.audio_shape, description.video_shape, len(description.classes))

    def forward(self, audio: Tensor | None, video: Tensor | None, time: Tensor, **conditions: Tensor) -> Any:
        """Return the predictions for audio and video; see :meth:`mmldm_scale.models.dit.DiT.forward`."""
        return self.dit(audio, video, time, **conditions)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # its other arguments have no effect
        cls,
        folder: str | os.PathLike[str],
        torch_dtype: torch.dtype | None = None,
        subfolder: str = "",
        **_: Any,
    ) -> "MMLDMDiT":
        """Load a DiT's weights folder; other options of diffusers have no effect.

        Raises:
            UserError: there is none, it is damaged, or of another kind.
        """
        description = DiTDescription.read(Path(folder) / subfolder)
        model = cls(description)
        pretrained.load_into(model.dit, description.folder)
        return cast(model, torch_dtype).eval()

    def save_pretrained(self, save_directory: str | os.PathLike[str], *_: Any, **__: Any) -> None:
        """Write a DiT's weights folder, which ``mmldm sample --checkpoint`` reads, too."""
        pretrained.save(Path(save_directory), "dit", self.stored, self.dit.state_dict())


class MMLDMAutoencoder(ModelMixin):
    """The autoencoder's encoders, projectors, heads, and its decoder's conditioning, without KL-VAE and U-Nets.

    :meth:`joined` returns the whole autoencoder.

    Args:
        model: a whole one, whose KL-VAE and U-Nets are left out.
        fingerprint: of the weights folder of the whole one.
    """

    def __init__(self, model: Autoencoder, fingerprint: str = "") -> None:
        super().__init__()
        self.fingerprint = fingerprint
        self.description = model.description()
        self.unet_names = tuple(unet_folder(name) for name in model.decoder.unets)
        model.set_aside("kl_vae")
        model.decoder.set_unets_aside()
        self.model = model

    def joined(self, vae: AutoencoderKL, unets: Mapping[str, UNet2DConditionModel]) -> Autoencoder:
        """Return the whole autoencoder with ``vae`` and with ``unets``, by the names of their folders."""
        self.model.__dict__["kl_vae"] = vae
        self.model.decoder.__dict__["unets"] = {
            name.removeprefix(f"{UNET}_") if name != UNET else "shared": unet for name, unet in unets.items()
        }
        return self.model

    @classmethod
    def from_pretrained(  # type: ignore[override]  # its other arguments have no effect
        cls,
        folder: str | os.PathLike[str],
        torch_dtype: torch.dtype | None = None,
        subfolder: str = "",
        **_: Any,
    ) -> "MMLDMAutoencoder":
        """Load a folder that :meth:`save_pretrained` wrote; other options of diffusers have no effect.

        Raises:
            UserError: there is none, it is damaged, or of another kind.
        """
        return cls.load(Path(folder) / subfolder, torch_dtype)[0]

    @classmethod
    def load(
        cls, folder: Path, dtype: torch.dtype | None = None
    ) -> tuple["MMLDMAutoencoder", dict[str, UNet2DConditionModel]]:
        """Return the part in ``folder`` and the U-Nets that belong to it, which have random weights, by their folders.

        Raises:
            UserError: see :meth:`from_pretrained`.
        """
        stored = pretrained.read_config(folder, AUTOENCODER_PART)
        fingerprint = str(stored.pop(FINGERPRINT, ""))
        model = build(stored, folder / pretrained.CONFIG)
        unets: dict[str, Any] = {unet_folder(name): unet for name, unet in model.decoder.unets.items()}
        part = cls(model, fingerprint)
        pretrained.load_into(part.model, folder)
        return cast(part, dtype).eval(), unets

    def save_pretrained(self, save_directory: str | os.PathLike[str], *_: Any, **__: Any) -> None:
        """Write the part as a weights folder of its own kind."""
        description = self.description | {FINGERPRINT: self.fingerprint}
        pretrained.save(Path(save_directory), AUTOENCODER_PART, description, self.model.state_dict())


def cast(module: Module, dtype: torch.dtype | None) -> Module:
    """Return ``module`` in ``dtype``, if there is one, without the warning that diffusers' own ``to`` prints."""
    if dtype:
        torch.nn.Module.to(module, dtype)
    return module


def unet_folder(name: str) -> str:
    """Return the folder of a decoder's U-Net: "unet" of the "shared" one, "unet_audio" and "unet_video" else."""
    return UNET if name == "shared" else f"{UNET}_{name}"
