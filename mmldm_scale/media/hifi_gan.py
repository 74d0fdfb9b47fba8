"""A pretrained HiFi-GAN generator, in its authors' format or in transformers', as one and the same network.

The authors' is a folder with ``config.json`` and a generator's checkpoint (``generator_v1``, ``g_02500000``: a torch
file, of which nothing but tensors is read, or .safetensors), or that checkpoint itself with the ``config.json`` beside
it. transformers' is a folder of its SpeechT5HifiGan. The network is the latter's: it is the authors' V1 and V2 with the
weight normalisation multiplied out. Their V3 has other residual blocks.
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
MODEL_TYPES = ("speecht5_hifigan", "hifigan")  # in the config.json of newer and older versions of transformers
TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
GENERATORS = ("generator*", "g_*", "*.safetensors")  # names of the authors' checkpoints; do_… is the discriminators'
# Where the authors' config.json says what it was trained on, by our names.
RECIPE = {
    "sample_rate": "sampling_rate",
    "n_fft": "n_fft",
    "win_length": "win_size",
    "hop_length": "hop_size",
    "n_mels": "num_mels",
    "f_min": "fmin",
    "f_max": "fmax",
}
GEOMETRY = (  # keys that mean the same in both formats
    "sampling_rate",
    "upsample_initial_channel",
    "upsample_rates",
    "upsample_kernel_sizes",
    "resblock_kernel_sizes",
    "resblock_dilation_sizes",
)


class HifiGan:
    """A pretrained HiFi-GAN generator as a vocoder.

    Raises:
        UserError: there is none at ``path``, or it is damaged, or it was trained on other mels than ``audio``'s.
    """

    def __init__(self, path: Path, audio: AudioImageConfig) -> None:
        try:
            self.model = _load(path, audio)
        except UserError:
            raise
        except Exception as error:  # whatever a wrong value sets off in the library is the file's fault
            reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())[:300]
            raise UserError(f"{path}: cannot be loaded as a vocoder: {reason}") from None

    @torch.inference_mode()
    def __call__(self, decibels: Tensor, samples: int) -> Tensor:
        """Return the (B, samples) float32 waveforms of mel magnitudes (B, n_mels, T) in dB, on their device."""
        model = self.model.to(decibels.device)
        mels = (decibels.float() * (math.log(10) / 20)).clamp(min=math.log(MIN_MAGNITUDE))  # natural logarithm
        with torch.autocast(decibels.device.type, enabled=False):
            sounds = [model(one.T) for one in mels]  # (T, n_mels) -> (T * hop,); one by one: no batch dependence
        sound = torch.stack(sounds)[:, :samples]
        return F.pad(sound, (0, samples - sound.shape[1])).clamp(-1, 1)


def _load(path: Path, audio: AudioImageConfig) -> SpeechT5HifiGan:
    values = _read_config(path, path if path.is_dir() else path.parent)
    original = "resblock" in values
    config = _original_config(path, values) if original else SpeechT5HifiGanConfig.from_dict(values)
    _check_recipe(path, _original_recipe(values) if original else _transformers_recipe(config), audio)
    weights = _weights_file(path, GENERATORS if original else TRANSFORMERS_WEIGHTS)
    state = {_new_name(name): tensor for name, tensor in _fold(read_tensors(weights)).items()}
    model = SpeechT5HifiGan(config)
    if original:  # its mels are not normalised
        state |= {"mean": model.mean, "scale": model.scale}
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def _read_config(path: Path, folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        raise UserError(f"{path}: no vocoder, for {folder / CONFIG} is missing; a folder with a HiFi-GAN and that fits")
    values = json.loads((folder / CONFIG).read_text())
    if "resblock" not in values and values.get("model_type") not in MODEL_TYPES:
        raise UserError(
            f"{folder / CONFIG}: model_type is {values.get('model_type')!r} and there is no resblock; "
            f"HiFi-GAN's own config.json, or transformers' of type {' or '.join(MODEL_TYPES)}, fits"
        )
    return values


def _original_config(path: Path, values: dict[str, Any]) -> SpeechT5HifiGanConfig:
    """Return transformers' configuration of the generator that the authors' ``values`` describe."""
    if str(values["resblock"]) != "1":
        raise UserError(f"{path}: resblock is {values['resblock']!r}, as in HiFi-GAN's V3; V1 and V2 ('1') fit")
    geometry = {key: values[key] for key in GEOMETRY}
    upsampling = math.prod(geometry["upsample_rates"])
    if upsampling != values["hop_size"]:
        raise ValueError(f"upsample_rates multiply to {upsampling}, not to hop_size {values['hop_size']}")
    return SpeechT5HifiGanConfig(
        model_in_dim=values["num_mels"], normalize_before=False, leaky_relu_slope=0.1, **geometry
    )


def _original_recipe(values: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Return name and value in ``values`` of each thing that it says of its mels, by our names."""
    recipe = {ours: (theirs, values[theirs]) for ours, theirs in RECIPE.items() if theirs in values}
    if recipe.get("f_max") == ("fmax", None):  # all there is
        recipe["f_max"] = ("fmax", values["sampling_rate"] / 2)
    return recipe


def _transformers_recipe(config: SpeechT5HifiGanConfig) -> dict[str, tuple[str, Any]]:
    """Return the same of transformers' format, which does not say more."""
    return {
        "sample_rate": ("sampling_rate", config.sampling_rate),
        "hop_length": ("product of upsample_rates", math.prod(config.upsample_rates)),
        "n_mels": ("model_in_dim", config.model_in_dim),
    }


def _check_recipe(path: Path, recipe: dict[str, tuple[str, Any]], audio: AudioImageConfig) -> None:
    """Raise UserError with everything in which the vocoder's mels differ from ``audio``'s."""
    differing = [
        f"its {theirs} is {found}, but media.audio.{ours} is {getattr(audio, ours)}"
        for ours, (theirs, found) in recipe.items()
        if found != getattr(audio, ours)
    ]
    if differing:
        raise UserError(f"{path}: is a vocoder of other mels: {'; '.join(differing)}; equal ones fit")


def _weights_file(path: Path, patterns: tuple[str, ...]) -> Path:
    """Return the one file that holds the generator: ``path`` itself, or the first pattern's in the folder."""
    if path.is_file():
        return path
    for pattern in patterns:
        files = sorted(file for file in path.glob(pattern) if file.is_file() and file.suffix != ".json")
        if len(files) > 1:
            raise UserError(f"{path}: holds {len(files)} generators, such as {files[-1].name}; the path of one fits")
        if files:
            return files[0]
    raise UserError(f"{path}: holds no weights; {' or '.join(patterns)} fits")


def _fold(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` with its weight normalisation multiplied out: w = g · v / ‖v‖, a norm for each first index."""
    folded = {name: tensor for name, tensor in state.items() if not name.endswith((".weight_g", ".weight_v"))}
    for name, direction in state.items():
        if name.endswith(".weight_v"):
            direction = direction.float()
            length = direction.flatten(1).norm(dim=1).view(-1, 1, 1)
            folded[name.removesuffix("_v")] = state[f"{name.removesuffix('_v')}_g"] * direction / length
    return folded


def _new_name(name: str) -> str:
    return f"upsampler.{name.removeprefix('ups.')}" if name.startswith("ups.") else name
