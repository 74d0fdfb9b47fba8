"""Loads Stable Diffusion's KL-VAE, and its U-Net into the signal decoder's, from their published formats.

A path is a diffusers folder (of the part itself, or of a whole pipeline with the part in a sub-folder) or a single
file: .safetensors, or .ckpt, .pth or .bin, of which only tensors are read. A file's keys may be those of latent
diffusion, in which Stable Diffusion was first published, or diffusers'. It may hold all of Stable Diffusion or the part
alone. If it holds averaged weights (``model_ema.…``) beside the trained ones, the trained ones are used. Half precision
becomes float32. Nothing is downloaded.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.safe_tensors import read_tensors
from mmldm_scale.models import pretrained

VAE_FOLDER, UNET_FOLDER = "vae", "unet"  # diffusers' names of the parts' folders in a pipeline's folder
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model"  # diffusers' names of files in a part's folder
INDEX = f"{WEIGHTS}.safetensors.index.json"
SINGLE_FILES = (f"{WEIGHTS}.safetensors", f"{WEIGHTS}.fp16.safetensors", f"{WEIGHTS}.bin")
# Prefixes of the parts' keys in a file of all of Stable Diffusion, and of keys that only SDXL has.
KL_VAE_PREFIX, UNET_PREFIX, SDXL_PREFIX = "first_stage_model.", "model.diffusion_model.", "conditioner."
LOSS_PREFIX = "loss."  # of the training loss, which latent diffusion's own files of a KL-VAE hold beside its weights
KL_VAE_CONFIG = {  # Stable Diffusion 1 and 2; the scaling of its latents is diffusers' default, 0.18215
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
# Parts of attention keys as diffusers named them before 2023, in Stable Diffusion's own folder too, and today.
OLD_KEYS = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
# What the signal decoder's U-Net has and Stable Diffusion's does not: the prefix of its keys, and its settings.
CLASS_EMBEDDING = "class_embedding."
CLASS_EMBEDDING_SETTINGS = ("sample_size", "class_embed_type", "projection_class_embeddings_input_dim")
NAMES_IN_ERROR = 3  # weights that an error lists by name
MAX_CONFIGURED = 8192  # layers, channels or groups that a configuration may ask for
REASON_LENGTH = 200  # characters of a library's message that are repeated in an error

Conversion = Callable[[dict[str, Tensor]], dict[str, Any]]  # latent diffusion's keys → diffusers'; None: no such tensor


def load_kl_vae(path: str | Path) -> AutoencoderKL:
    """Return the KL-VAE in ``path``, in float32 on the CPU, in evaluation mode.

    A single file gets the geometry and scaling of Stable Diffusion 1 and 2, unless a KL-VAE's config.json is beside it.
    SDXL's KL-VAE has the same geometry but another scaling: it needs its config.json.

    Raises:
        UserError: there is no KL-VAE, or it is damaged, or its weights do not match its configuration.
    """
    path = Path(path)
    folder = _part_folder(path, VAE_FOLDER)
    if path.is_dir():
        config, state = _read_config(folder, AutoencoderKL), _read_folder(folder)
    else:
        config, state = _read_kl_vae_file(path)
    with torch.device("meta"):
        vae = build_kl_vae(config, folder / CONFIG)
    state = _convert(path, state, "encoder.down.", lambda ldm_state: convert_ldm_vae_checkpoint(ldm_state, vae.config))
    for old, new in OLD_KEYS.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    target = "Stable Diffusion's KL-VAE" if config is KL_VAE_CONFIG else f"its {CONFIG}"
    _check_match(path, state, vae.state_dict(), target)
    vae.load_state_dict({name: tensor.to(torch.float32, copy=True) for name, tensor in state.items()}, assign=True)
    return vae.eval()


def build_kl_vae(config: Any, file: Path) -> AutoencoderKL:
    """Return the KL-VAE that ``config`` in ``file`` describes, with random weights; raise UserError if it does not.

    diffusers checks no values, and would look for a text on the network.
    """
    try:
        if not isinstance(config, dict):
            raise TypeError(f"must be a mapping, not {config!r:.80}")
        for name in ("layers_per_block", "in_channels", "out_channels", "latent_channels", "norm_num_groups"):
            if not 1 <= config.get(name, 1) <= MAX_CONFIGURED:
                raise ValueError(f"{name} must lie in 1..{MAX_CONFIGURED}, not {config[name]!r:.80}")
        vae: AutoencoderKL = AutoencoderKL.from_config(config)
        if not 0 < vae.config["scaling_factor"] < float("inf"):
            raise ValueError(f"scaling_factor must be greater than 0 and finite, not {vae.config['scaling_factor']!r}")
    except Exception as error:
        raise UserError(f"{file}: does not describe a KL-VAE: {_one_line(error)}") from None
    return vae


def load_unet(unet: UNet2DConditionModel, path: str | Path) -> None:
    """Load the U-Net in ``path`` into ``unet``; the class embedding, which it does not have, keeps its weights.

    Raises:
        UserError: there is no U-Net, or it is damaged, or it has other shapes, weights or settings than ``unet``.
    """
    path = Path(path)
    folder = _part_folder(path, UNET_FOLDER)
    if path.is_dir():
        _check_settings(folder, _read_config(folder, UNet2DConditionModel), unet)
        state = _read_folder(folder)
    else:
        state = _read_file(path, UNET_PREFIX)
    geometry = {"layers_per_block": unet.config["layers_per_block"]}
    state = _convert(
        path,
        state,
        "input_blocks.",
        lambda ldm_state: convert_ldm_unet_checkpoint(
            {UNET_PREFIX + name: tensor for name, tensor in ldm_state.items()}, geometry
        ),
    )
    expected = {name: tensor for name, tensor in unet.state_dict().items() if not name.startswith(CLASS_EMBEDDING)}
    _check_match(path, state, expected, "the U-Net of model.decoder (its defaults are Stable Diffusion 1's)")
    unet.load_state_dict(state, strict=False)


def load_whole_unet(unet: UNet2DConditionModel, folder: Path) -> None:
    """Load a U-Net that diffusers saved from a signal decoder, with its class embedding, into one alike.

    Raises:
        UserError: there is no U-Net in ``folder``, or it is damaged, or has other weights or settings than ``unet``.
    """
    _check_settings(folder, _read_config(folder, UNet2DConditionModel), unet)
    state = _read_folder(folder)
    _check_match(folder, state, unet.state_dict(), "the autoencoder beside it")
    unet.load_state_dict(state)


def _part_folder(path: Path, name: str) -> Path:
    """Return the folder of a part: a file's parent, a pipeline's sub-folder ``name``, or ``path`` itself."""
    if not path.exists():
        formats = "a diffusers folder or a file (.safetensors, .ckpt, .pth, .bin)"
        raise UserError(f"{path}: no such file or folder; must be {formats}")
    if not path.is_dir():
        return path.parent
    return path / name if (path / name).is_dir() and not (path / CONFIG).exists() else path


def describes(folder: Path, model: type) -> bool:
    """Return whether ``folder`` has a config.json whose ``_class_name`` is that of ``model``."""
    try:
        return bool(json.loads((folder / CONFIG).read_text()).get("_class_name") == model.__name__)
    except (OSError, ValueError, AttributeError):
        return False


def _read_config(folder: Path, model: type) -> dict[str, Any]:
    if not describes(folder, model):
        raise UserError(f"{folder}: is no diffusers folder: must have a {CONFIG} with _class_name {model.__name__}")
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    return config


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a diffusers folder, from one file or several, once they match the sums that it may have."""
    pretrained.verify(folder)
    if (folder / INDEX).is_file():
        return _read_sharded(folder)
    for name in SINGLE_FILES:
        if (folder / name).is_file():
            return read_tensors(folder / name)
    raise UserError(f"{folder}: holds no weights; must have one of {', '.join((INDEX, *SINGLE_FILES))}")


def _read_sharded(folder: Path) -> dict[str, Tensor]:
    try:
        files = {str(name) for name in json.loads((folder / INDEX).read_text())["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / INDEX}: is no index of weights; weight_map must map keys to file names") from None
    state: dict[str, Tensor] = {}
    for name in sorted(files):
        if Path(name).name != name:
            raise UserError(f"{folder / INDEX}: weight_map names {name!r}, which is outside the folder")
        state |= read_tensors(folder / name)
    return state


def _read_file(path: Path, prefix: str) -> dict[str, Tensor]:
    """Return the tensors under ``prefix``, without it; if there are none, the file is the part's: all tensors."""
    part = read_tensors(path, prefix)
    return {name.removeprefix(prefix): tensor for name, tensor in part.items()} if part else read_tensors(path)


def _read_kl_vae_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration and the tensors of a KL-VAE in a single file."""
    has_config = describes(path.parent, AutoencoderKL)
    if not has_config and read_tensors(path, SDXL_PREFIX):
        raise UserError(f"{path}: is SDXL, whose KL-VAE has another scaling; must be a diffusers folder with its vae")
    config = _read_config(path.parent, AutoencoderKL) if has_config else KL_VAE_CONFIG
    tensors = _read_file(path, KL_VAE_PREFIX)
    return config, {name: tensor for name, tensor in tensors.items() if not name.startswith(LOSS_PREFIX)}


def _convert(path: Path, state: dict[str, Tensor], ldm_prefix: str, conversion: Conversion) -> dict[str, Tensor]:
    """Return ``state`` under diffusers' keys, by ``conversion`` if it has keys with latent diffusion's ``ldm_prefix``.

    diffusers drops tensors that it does not know. They are added again, so that :func:`_check_match` reports them.
    """
    if not any(name.startswith(ldm_prefix) for name in state):
        return state
    try:
        converted = {name: tensor for name, tensor in conversion(state).items() if tensor is not None}
    except (KeyError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: its weights are incomplete: {_one_line(error)}") from None
    used = {tensor.data_ptr() for tensor in converted.values()}
    return converted | {name: tensor for name, tensor in state.items() if tensor.data_ptr() not in used}


def _check_match(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], target: str) -> None:
    """Raise UserError unless ``state`` has exactly the names and shapes of ``expected``, all of floating point."""
    shared = state.keys() & expected.keys()
    mismatches = {
        "missing": expected.keys() - state.keys(),
        "left over": state.keys() - expected.keys(),
        "of another shape": {
            f"{name} {tuple(state[name].shape)} for {tuple(expected[name].shape)}"
            for name in shared
            if state[name].shape != expected[name].shape
        },
        "not floating-point": {name for name in shared if not state[name].is_floating_point()},
    }
    counts = [f"{len(names)} {kind} ({_some(names)})" for kind, names in mismatches.items() if names]
    if counts:
        raise UserError(f"{path}: does not match {target}: of its weights {'; '.join(counts)}")


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:NAMES_IN_ERROR]) + (", …" if len(names) > NAMES_IN_ERROR else "")


def _check_settings(folder: Path, config: Mapping[str, Any], unet: UNet2DConditionModel) -> None:
    """Raise UserError if ``config`` differs from the configuration of ``unet``; not all settings change a shape."""
    differing = [
        f"{key} is {value}, not {unet.config[key]}"
        for key, value in config.items()
        if key in unet.config
        and key not in CLASS_EMBEDDING_SETTINGS
        and not key.startswith("_")
        and (value or None) != (_as_json(unet.config[key]) or None)
    ]
    if differing:
        raise UserError(f"{folder}: is another U-Net than that of model.decoder: {'; '.join(differing)}")


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:REASON_LENGTH]
