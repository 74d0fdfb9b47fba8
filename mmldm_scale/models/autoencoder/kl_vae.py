"""The KL-VAE: pictures ⇄ latents of a fourth or an eighth of their height and width; the autoencoder works on these.

It is diffusers' ``AutoencoderKL``, either a published one (Stable Diffusion's, in any format that
:mod:`~mmldm_scale.models.autoencoder.stable_diffusion` reads) or one trained here. The weights folder of a ``kl_vae``
run holds it in diffusers' format in the sub-folder ``vae``, beside the ``config.json`` that names its kind.
``kl_vae.load(path)`` loads both.

Shapes: N pictures (N, 3, S, S), their latents (N, c, S/f, S/f).
"""

import json
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import KLVAEConfig, Precision
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import stable_diffusion
from mmldm_scale.models.autoencoder.blocks import norm_groups


def build(config: KLVAEConfig, scaling_factor: float = 1.0) -> AutoencoderKL:
    """Return a KL-VAE with random weights; it reduces height and width by f = 2 ** (len(config.channels) - 1)."""
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
    """Cast ``vae``, in float32, to bfloat16 if ``precision`` is "bf16"; otherwise it stays, as it overflows float16."""
    if precision == "bf16":
        vae.bfloat16()


def reduction(vae: AutoencoderKL) -> int:
    """Return f, the factor by which ``vae`` reduces height and width."""
    return 2 ** (len(vae.config["block_out_channels"]) - 1)


def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Encode ``pictures`` (N, 3, S, S) in [-1, 1] into scaled latents (N, c, S/f, S/f) of about unit variance, float32.

    The latent is the posterior's mean, so that encoding is deterministic.
    """
    posterior = vae.encode(pictures.to(vae.dtype, memory_format=torch.channels_last)).latent_dist
    mean: Tensor = posterior.mean  # (N, c, S/f, S/f)
    return mean.float() * vae.config["scaling_factor"]


def render(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode scaled ``latents`` (N, c, S/f, S/f) into pictures (N, 3, S, S), float32, about in [-1, 1], not clamped."""
    pictures: Tensor = vae.decode((latents / vae.config["scaling_factor"]).to(vae.dtype)).sample
    return pictures.float()


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode scaled ``latents`` (N, c, S/f, S/f) into pictures (N, 3, S, S) in [-1, 1], float32."""
    return render(vae, latents).clamp(-1.0, 1.0)


def save(folder: Path, vae: AutoencoderKL) -> None:
    """Write ``vae`` as a weights folder of kind "kl_vae"; diffusers itself can load its sub-folder ``vae``."""
    vae.save_pretrained(folder / stable_diffusion.VAE_FOLDER, safe_serialization=True)
    (folder / pretrained.CONFIG).write_text(json.dumps({"kind": "kl_vae"}, indent=2) + "\n")
    pretrained.seal(folder)


def load(path: str | Path) -> AutoencoderKL:
    """Load a KL-VAE: a published one (diffusers folder or single file) or a kl_vae run, checkpoint or weights folder.

    Raises:
        UserError: there is none at ``path``, or it is damaged, or its weights are incomplete.
    """
    return stable_diffusion.load_kl_vae(find(Path(path)))


def find(path: Path) -> Path:
    """Return the file or diffusers folder of the KL-VAE that :func:`load` loads; raise UserError if there is none."""
    if not path.exists():
        formats = "a kl_vae run, a diffusers folder or a file (.safetensors, .ckpt, .pth, .bin)"
        raise UserError(f"{path}: no such file or folder; must be {formats}")
    if path.is_file():
        return path
    for folder in (path, path / stable_diffusion.VAE_FOLDER):
        if stable_diffusion.describes(folder, AutoencoderKL):
            return folder
    return pretrained.find(path, "kl_vae") / stable_diffusion.VAE_FOLDER
