"""The KL-VAE under everything: pictures ⇄ latents of a fourth or an eighth of their size, frozen once it is trained.

It is diffusers' ``AutoencoderKL``, either a published one (Stable Diffusion's ``vae`` folder) or one trained here. Both
lie on disk in diffusers' own format; a kl-vae run's weights folder holds it as its sub-folder ``vae``, next to the
``config.json`` that says what it is, so :func:`load` has one path for both.
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from torch import Tensor

from mmldm_scale.config import KLVAEConfig
from mmldm_scale.errors import UserError
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder.blocks import norm_groups

SUBFOLDER = "vae"  # also the name of this part in a Stable Diffusion folder


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


def reduction(vae: AutoencoderKL) -> int:
    """Return f, the factor by which ``vae`` reduces height and width."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Encode ``pictures`` (N, 3, S, S) in [-1, 1] into scaled latents (N, c, S/f, S/f) of about unit variance, float32.

    The posterior's mean stands for the picture: encoding draws nothing at random.
    """
    moments = vae.encode(pictures.to(vae.dtype, memory_format=torch.channels_last)).latent_dist
    return moments.mean.float() * vae.config.scaling_factor


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode scaled ``latents`` (N, c, S/f, S/f) into pictures (N, 3, S, S) in [-1, 1], float32."""
    pictures = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample
    return pictures.float().clamp(-1.0, 1.0)


def save(folder: Path, vae: AutoencoderKL) -> None:
    """Write ``vae`` as a weights folder of kind "kl_vae", whose sub-folder ``vae`` any diffusers program can load."""
    vae.save_pretrained(folder / SUBFOLDER, safe_serialization=True)
    (folder / pretrained.CONFIG).write_text(json.dumps({"kind": "kl_vae"}, indent=2) + "\n")


def load(path: str | Path) -> AutoencoderKL:
    """Load a KL-VAE from a diffusers folder (or one with a ``vae`` in it), or a kl-vae run, checkpoint or its weights.

    Raises:
        UserError: there is none at ``path``, or it is damaged, or weights are missing from it.
    """
    folder = find(Path(path))
    try:
        vae, info = AutoencoderKL.from_pretrained(
            folder,
            use_safetensors=True,  # the other format is a pickle
            local_files_only=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: no KL-VAE can be loaded: {' '.join(str(error).split())[:300]}") from None
    absent = info["missing_keys"] or info["mismatched_keys"]
    if absent:
        raise UserError(f"{folder}: its weights do not fit its config.json: {len(absent)} missing, such as {absent[0]}")
    return vae.eval()


def find(path: Path) -> Path:
    """Return the diffusers folder that ``path`` means, as :func:`load` does; raise UserError if there is none."""
    for folder in (path, path / SUBFOLDER):
        if _is_diffusers(folder):
            return folder
    return pretrained.find(path, "kl_vae") / SUBFOLDER


def _is_diffusers(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text())
        return config.get("_class_name") == "AutoencoderKL"
    except (OSError, ValueError, AttributeError):
        return False
