"""The KL-VAE under everything: pictures ⇄ latents of a fourth or an eighth of their size, frozen once it is trained.

It is diffusers' ``AutoencoderKL``, either a published one (Stable Diffusion's, in any format that
:mod:`~mmldm_scale.models.autoencoder.stable_diffusion` knows) or one trained here: a kl_vae run's weights folder holds
it in diffusers' format as its sub-folder ``vae``, next to the ``config.json`` that says what it is. :func:`load` is the
one door to both.
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import KLVAEConfig, Precision
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import stable_diffusion
from mmldm_scale.models.autoencoder.blocks import norm_groups

SUBFOLDER = stable_diffusion.VAE


def build(config: KLVAEConfig, scaling_factor: float = 1.0) -> AutoencoderKL:
    """Return a freshly initialised KL-VAE; it reduces pictures by 2 ** (len(config.channels) - 1)."""
    levels = len(config.channels)
    return AutoencoderKL(
        block_out_channels=tuple(config.channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=config.blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=norm_groups(config.channels[0]),
        scaling_factor=scaling_factor,
    )


def set_precision(vae: AutoencoderKL, precision: Precision) -> None:
    """Give ``vae``, in float32, the type that it is used in beside a model of ``precision``: it overflows float16."""
    if precision == "bf16":
        vae.bfloat16()


def reduction(vae: AutoencoderKL) -> int:
    """Return f, the factor by which ``vae`` reduces height and width."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Encode ``pictures`` (N, 3, S, S) in [-1, 1] into scaled latents (N, c, S/f, S/f) of about unit variance, float32.

    The posterior's mean stands for the picture: encoding draws nothing at random.
    """
    moments = vae.encode(pictures.to(vae.dtype, memory_format=torch.channels_last)).latent_dist
    return moments.mean.float() * vae.config.scaling_factor


def render(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode scaled ``latents`` (N, c, S/f, S/f) into pictures (N, 3, S, S), float32, about in [-1, 1]."""
    return vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample.float()


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode scaled ``latents`` (N, c, S/f, S/f) into pictures (N, 3, S, S) in [-1, 1], float32."""
    return render(vae, latents).clamp(-1.0, 1.0)


def save(folder: Path, vae: AutoencoderKL) -> None:
    """Write ``vae`` as a weights folder of kind "kl_vae", whose sub-folder ``vae`` any diffusers program can load."""
    vae.save_pretrained(folder / SUBFOLDER, safe_serialization=True)
    (folder / pretrained.CONFIG).write_text(json.dumps({"kind": "kl_vae"}, indent=2) + "\n")
    pretrained.share(folder)


def load(path: str | Path) -> AutoencoderKL:
    """Load a KL-VAE: a published one (a diffusers folder or a single file), or a kl_vae run, checkpoint or its weights.

    Raises:
        UserError: there is none at ``path``, or it is damaged, or weights are missing from it.
    """
    return stable_diffusion.load_vae(find(Path(path)))


def find(path: Path) -> Path:
    """Return the file or diffusers folder that ``path`` means to :func:`load`; raise UserError if there is none."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; a kl_vae run, diffusers folder, .safetensors or .ckpt fits")
    if path.is_file():
        return path
    for folder in (path, path / SUBFOLDER):
        if stable_diffusion.describes(folder, AutoencoderKL):
            return folder
    return pretrained.find(path, "kl_vae") / SUBFOLDER
