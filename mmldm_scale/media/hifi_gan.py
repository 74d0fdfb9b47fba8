"""Pretrained HiFi-GAN generators, in their authors' format or in transformers': ``load_generator(path, audio)``.

The authors' format is a folder with ``config.json`` and a generator's checkpoint (``generator_v1``, ``g_02500000``: a
torch file, from which only tensors are read, or .safetensors), or the path of that checkpoint with ``config.json`` in
the same folder. transformers' format is a folder of its SpeechT5HifiGan. That is also the network used for both; it
equals the authors' V1 and V2 with the weight normalisation multiplied out. V3 has other residual blocks.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.safe_tensors import read_tensors
from mmldm_scale.config import AudioImageConfig
from mmldm_scale.media.audio_image import MIN_MAGNITUDE

CONFIG = "config.json"
MODEL_TYPES = ("speecht5_hifigan", "hifigan")  # model_type in config.json of newer and older transformers
TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
GENERATORS = (
    "generator*",
    "g_*",
    "*.safetensors",
)  # names of the authors' checkpoints; do_… contains the discriminators
# Keys of the authors' config.json for the mel settings that it was trained with, by our names.
RECIPE = {
    "sample_rate": "sampling_rate",
    "n_fft": "n_fft",
    "win_length": "win_size",
    "hop_length": "hop_size",
    "n_mels": "num_mels",
    "f_min": "fmin",
    "f_max": "fmax",
}
GEOMETRY = (  # keys with the same meaning in both formats
    "sampling_rate",
    "upsample_initial_channel",
    "upsample_rates",
    "upsample_kernel_sizes",
    "resblock_kernel_sizes",
    "resblock_dilation_sizes",
)


class HifiGan:
    """A pretrained HiFi-GAN generator (:func:`load_generator`) as a vocoder."""

    def __init__(self, model: SpeechT5HifiGan) -> None:
        self.model = model

    @torch.inference_mode()
    def __call__(self, decibels: Tensor, samples: int) -> Tensor:
        """Return the (B, samples) float32 waveforms of mel magnitudes (B, n_mels, T) in dB, on their device."""
        model = self.model.to(decibels.device)  # type: ignore[arg-type]  # transformers wraps the method untyped
        mels = (decibels.float() * (math.log(10) / 20)).clamp(min=math.log(MIN_MAGNITUDE))  # natural logarithm
        with torch.autocast(decibels.device.type, enabled=False):
            # (T, n_mels) -> (T * hop,), one by one: independent of the batch
            sounds = [model(mel.T.to(model.dtype)).float() for mel in mels]
        sound = torch.stack(sounds)[:, :samples]
        return F.pad(sound, (0, samples - sound.shape[1])).clamp(-1, 1)


def load_generator(path: Path, audio: AudioImageConfig) -> SpeechT5HifiGan:
    """Return the generator at ``path``, float32, in evaluation mode.

    Raises:
        UserError: there is none at ``path``, it is damaged, or its mel settings differ from ``audio``.
    """
    try:
        return _load(path, audio)
    except UserError:
        raise
    except Exception as error:  # a wrong value in the file can raise any exception in the library
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())[:300]
        raise UserError(f"{path}: cannot be loaded as a vocoder: {reason}") from None


def _load(path: Path, audio: AudioImageConfig) -> SpeechT5HifiGan:
    values = _read_config(path, path if path.is_dir() else path.parent)
    original = "resblock" in values
    config = _original_config(path, values) if original else SpeechT5HifiGanConfig.from_dict(values)
    _check_recipe(path, _original_recipe(values) if original else _transformers_recipe(config), audio)
    weights = _weights_file(path, GENERATORS if original else TRANSFORMERS_WEIGHTS)
    state = {_new_name(name): tensor for name, tensor in _fold(read_tensors(weights)).items()}
    model = SpeechT5HifiGan(config)
    if original:  # the authors' generators take mels that are not normalised
        state |= {"mean": model.mean, "scale": model.scale}
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def _read_config(path: Path, folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        raise UserError(f"{path}: not a vocoder: {folder / CONFIG} is missing; give a folder with a HiFi-GAN")
    values = json.loads((folder / CONFIG).read_text())
    if "resblock" not in values and values.get("model_type") not in MODEL_TYPES:
        raise UserError(
            f"{folder / CONFIG}: model_type is {values.get('model_type')!r} and there is no resblock; "
            f"expected HiFi-GAN's config.json, or transformers' with model_type {' or '.join(MODEL_TYPES)}"
        )
    return values


def _original_config(path: Path, values: dict[str, Any]) -> SpeechT5HifiGanConfig:
    """Return transformers' configuration of the generator that the authors' ``values`` describe."""
    if str(values["resblock"]) != "1":
        raise UserError(f"{path}: resblock is {values['resblock']!r}, as in HiFi-GAN's V3; must be '1' (V1 or V2)")
    geometry = {key: values[key] for key in GEOMETRY}
    upsampling = math.prod(geometry["upsample_rates"])
    if upsampling != values["hop_size"]:
        raise ValueError(f"upsample_rates multiply to {upsampling}; must be hop_size, {values['hop_size']}")
    return SpeechT5HifiGanConfig(
        model_in_dim=values["num_mels"], normalize_before=False, leaky_relu_slope=0.1, **geometry
    )


def _original_recipe(values: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Return (key, value) of each mel setting in ``values``, by our names."""
    recipe = {ours: (theirs, values[theirs]) for ours, theirs in RECIPE.items() if theirs in values}
    if recipe.get("f_max") == ("fmax", None):  # null means up to half the sample rate
        recipe["f_max"] = ("fmax", values["sampling_rate"] / 2)
    return recipe


def _transformers_recipe(config: SpeechT5HifiGanConfig) -> dict[str, tuple[str, Any]]:
    """Return (key, value) of each mel setting that transformers' format has, by our names."""
    return {
        "sample_rate": ("sampling_rate", config.sampling_rate),
        "hop_length": ("product of upsample_rates", math.prod(config.upsample_rates)),
        "n_mels": ("model_in_dim", config.model_in_dim),
    }


def _check_recipe(path: Path, recipe: dict[str, tuple[str, Any]], audio: AudioImageConfig) -> None:
    """Raise UserError with all mel settings in which the vocoder differs from ``audio``."""
    differing = [
        f"its {theirs} is {value}, but media.audio.{ours} is {getattr(audio, ours)}"
        for ours, (theirs, value) in recipe.items()
        if value != getattr(audio, ours)
    ]
    if differing:
        raise UserError(f"{path}: the vocoder's mel settings differ: {'; '.join(differing)}; they must be equal")


def _weights_file(path: Path, patterns: tuple[str, ...]) -> Path:
    """Return the generator's file: ``path`` itself, or the match of the first pattern that matches in the folder."""
    if path.is_file():
        return path
    for pattern in patterns:
        files = sorted(file for file in path.glob(pattern) if file.is_file() and file.suffix != ".json")
        if len(files) > 1:
            raise UserError(f"{path}: contains {len(files)} generators, such as {files[-1].name}; give the path of one")
        if files:
            return files[0]
    raise UserError(f"{path}: contains no weights; expected {' or '.join(patterns)}")


def _fold(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` with its weight normalisation multiplied out: w = g · v / ‖v‖, with one norm per first index."""
    folded = {name: tensor for name, tensor in state.items() if not name.endswith((".weight_g", ".weight_v"))}
    for name, direction in state.items():
        if name.endswith(".weight_v"):
            direction = direction.float()
            length = direction.flatten(1).norm(dim=1).view(-1, 1, 1)
            folded[name.removesuffix("_v")] = state[f"{name.removesuffix('_v')}_g"] * direction / length
    return folded


def _new_name(name: str) -> str:
    return f"upsampler.{name.removeprefix('ups.')}" if name.startswith("ups.") else name
