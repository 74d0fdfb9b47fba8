"""Stable Diffusion's weights in the formats in which the world has them: its KL-VAE, and its U-Net into ours.

A path is a diffusers folder (of the part itself, or of the whole pipeline with the part as a sub-folder) or a single
file: .safetensors, or .ckpt, .pth and .bin, of which nothing but tensors is read. A file's names may be those of
latent diffusion, in which Stable Diffusion was first published, or diffusers'; it may hold the whole of Stable
Diffusion or the part alone. Where it holds averaged weights (``model_ema.…``) beside the trained ones, the trained
ones are taken. Half precision becomes float32. Nothing is downloaded.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.safe_tensors import read_tensors

VAE, UNET = "vae", "unet"  # the parts' folders in a pipeline's
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model"
INDEX = f"{WEIGHTS}.safetensors.index.json"
SINGLE_FILES = (f"{WEIGHTS}.safetensors", f"{WEIGHTS}.fp16.safetensors", f"{WEIGHTS}.bin")
VAE_PREFIX, UNET_PREFIX = "first_stage_model.", "model.diffusion_model."  # in a file of the whole of Stable Diffusion
SDXL_PREFIX = "conditioner."
VAE_LOSS = "loss."  # what a KL-VAE was trained with lies beside its weights in latent diffusion's own files
VAE_CONFIG = {  # Stable Diffusion 1 and 2; the scaling of its latents is diffusers' default, 0.18215
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
# The attention of diffusers folders from before 2023, Stable Diffusion's own among them.
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
CLASS_EMBEDDING = "class_embedding."  # what our U-Net has besides Stable Diffusion's: it takes the condition in
OURS = ("sample_size", "class_embed_type", "projection_class_embeddings_input_dim")  # in its configuration, likewise
SHOWN = 3  # names in an error


def load_vae(path: str | Path) -> AutoencoderKL:
    """Return the KL-VAE in ``path``, in float32 on the CPU, in evaluation mode.

    A single file gets the geometry and scaling of Stable Diffusion 1 and 2, unless a KL-VAE's config.json lies beside
    it. SDXL's KL-VAE has the same geometry but other scaling: it needs its config.json.

    Raises:
        UserError: there is no KL-VAE, or it is damaged, or its weights do not fit its configuration.
    """
    path = Path(path)
    folder = _part(path, VAE)
    if path.is_dir():
        config, state = _read_config(folder, AutoencoderKL), _read_folder(folder)
    else:
        config, state = _read_vae_file(path)
    try:
        with torch.device("meta"):
            vae = AutoencoderKL.from_config(config)
    except Exception as error:  # whatever a wrong value sets off in the library is the configuration's fault
        raise UserError(f"{folder / CONFIG}: describes no KL-VAE: {' '.join(str(error).split())[:200]}") from None
    state = _convert(path, state, "encoder.down.", lambda found: convert_ldm_vae_checkpoint(found, vae.config))
    for old, new in OLD_NAMES.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    _check_fit(path, state, vae.state_dict(), "Stable Diffusion's KL-VAE" if config is VAE_CONFIG else f"its {CONFIG}")
    vae.load_state_dict({name: tensor.to(torch.float32, copy=True) for name, tensor in state.items()}, assign=True)
    return vae.eval()


def load_unet(unet: UNet2DConditionModel, path: str | Path) -> None:
    """Load the U-Net in ``path`` into ``unet``, all of it but its class embedding, which stays as it is.

    Raises:
        UserError: there is no U-Net, or it is damaged, or it has other shapes, weights or settings than ``unet``.
    """
    path = Path(path)
    folder = _part(path, UNET)
    if path.is_dir():
        _check_settings(folder, _read_config(folder, UNet2DConditionModel), unet)
        state = _read_folder(folder)
    else:
        state = _read_file(path, UNET_PREFIX)
    geometry = {"layers_per_block": unet.config.layers_per_block}
    state = _convert(
        path,
        state,
        "input_blocks.",
        lambda found: convert_ldm_unet_checkpoint({UNET_PREFIX + name: found[name] for name in found}, geometry),
    )
    wanted = {name: tensor for name, tensor in unet.state_dict().items() if not name.startswith(CLASS_EMBEDDING)}
    _check_fit(path, state, wanted, "the U-Net of model.decoder (Stable Diffusion 1's fits its defaults)")
    unet.load_state_dict(state, strict=False)


def _part(path: Path, name: str) -> Path:
    """Return the folder of a part: that of a file, ``path`` with a configuration of its own, or its ``name`` in it."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; a diffusers folder, .safetensors or .ckpt fits")
    if not path.is_dir():
        return path.parent
    return path / name if (path / name).is_dir() and not (path / CONFIG).exists() else path


def describes(folder: Path, model: type) -> bool:
    """Say whether ``folder`` has a config.json of the class ``model``."""
    try:
        return json.loads((folder / CONFIG).read_text()).get("_class_name") == model.__name__
    except (OSError, ValueError, AttributeError):
        return False


def _read_config(folder: Path, model: type) -> dict[str, Any]:
    if not describes(folder, model):
        raise UserError(f"{folder}: is no diffusers folder of {model.__name__} ({CONFIG} with that _class_name)")
    return json.loads((folder / CONFIG).read_text())


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a diffusers folder, whether in one file or several."""
    if (folder / INDEX).is_file():
        return _read_sharded(folder)
    for name in SINGLE_FILES:
        if (folder / name).is_file():
            return read_tensors(folder / name)
    raise UserError(f"{folder}: holds no weights; {', '.join((INDEX, *SINGLE_FILES))} fits")


def _read_sharded(folder: Path) -> dict[str, Tensor]:
    try:
        files = {str(name) for name in json.loads((folder / INDEX).read_text())["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / INDEX}: is no index of weights") from None
    state: dict[str, Tensor] = {}
    for name in sorted(files):
        if Path(name).name != name:
            raise UserError(f"{folder / INDEX}: {name!r} lies outside the folder")
        state |= read_tensors(folder / name)
    return state


def _read_file(path: Path, prefix: str) -> dict[str, Tensor]:
    """Return a part's tensors: those under ``prefix``, without it, of a file of the whole; all of any other file."""
    part = read_tensors(path, prefix)
    return {name.removeprefix(prefix): tensor for name, tensor in part.items()} if part else read_tensors(path)


def _read_vae_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration and the tensors of a KL-VAE in a single file."""
    beside = describes(path.parent, AutoencoderKL)
    if not beside and read_tensors(path, SDXL_PREFIX):
        raise UserError(f"{path}: is SDXL, whose KL-VAE scales otherwise; a diffusers folder with its vae fits")
    config = _read_config(path.parent, AutoencoderKL) if beside else VAE_CONFIG
    tensors = _read_file(path, VAE_PREFIX)
    return config, {name: tensor for name, tensor in tensors.items() if not name.startswith(VAE_LOSS)}


def _convert(path: Path, state: dict[str, Tensor], mark: str, conversion: Callable) -> dict[str, Tensor]:
    """Return ``state`` under diffusers' names: converted by diffusers if its names (``mark``) are latent diffusion's.

    diffusers drops what it does not know; here that is an error.
    """
    if not any(name.startswith(mark) for name in state):
        return state
    try:
        converted = {name: tensor for name, tensor in conversion(state).items() if tensor is not None}
    except (KeyError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: its weights are not all there: {' '.join(str(error).split())[:200]}") from None
    used = {tensor.data_ptr() for tensor in converted.values()}
    return converted | {name: tensor for name, tensor in state.items() if tensor.data_ptr() not in used}


def _check_fit(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], target: str) -> None:
    """Raise UserError unless ``found`` has just the names and shapes of ``wanted``, all of floating point."""
    shared = found.keys() & wanted.keys()
    misfits = {
        "missing": wanted.keys() - found.keys(),
        "left over": found.keys() - wanted.keys(),
        "of another shape": {
            f"{name} {tuple(found[name].shape)} for {tuple(wanted[name].shape)}"
            for name in shared
            if found[name].shape != wanted[name].shape
        },
        "not floating-point": {name for name in shared if not found[name].is_floating_point()},
    }
    parts = [f"{len(names)} {kind}{_some(names)}" for kind, names in misfits.items() if names]
    if parts:
        raise UserError(f"{path}: does not fit {target}: of its weights {'; '.join(parts)}")


def _some(names: set[str]) -> str:
    shown = sorted(names)[:SHOWN]
    return f" ({', '.join(shown)}{', …' if len(names) > SHOWN else ''})"


def _check_settings(folder: Path, config: Mapping[str, Any], unet: UNet2DConditionModel) -> None:
    """Raise UserError where ``config`` differs from the configuration of ``unet``: shapes alone do not show it all."""
    differing = [
        f"{key} is {value}, not {unet.config[key]}"
        for key, value in config.items()
        if key in unet.config
        and key not in OURS
        and not key.startswith("_")
        and (value or None) != (_plain(unet.config[key]) or None)
    ]
    if differing:
        raise UserError(f"{folder}: is another U-Net than model.decoder describes: {'; '.join(differing)}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
