"""Weights folders of a tiny DiT and its autoencoder with random weights, as training leaves them on disk."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from mmldm_scale.config import (
    AudioImageConfig,
    AutoencoderConfig,
    DiffusionConfig,
    DiTConfig,
    EncoderConfig,
    KLVAEConfig,
    MediaConfig,
    UNetConfig,
)
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.dit import LAYOUT, DiT

AUDIO = AudioImageConfig(sample_rate=8000, n_fft=256, win_length=256, hop_length=100, n_mels=32, f_max=4000)
MEDIA = MediaConfig(frames=4, fps=10, size=32, audio=AUDIO)


@dataclass
class TinyModel:
    dit: Path
    autoencoder: Path
    other_autoencoder: Path
    media: MediaConfig


def save_model(folder: Path) -> TinyModel:
    """Write the weights below ``folder``."""
    torch.manual_seed(0)
    shapes = [save_autoencoder(folder / name) for name in ("autoencoder", "other_autoencoder")]
    audio_shape, video_shape = shapes[0]
    config = DiTConfig(depth=1, width=16, heads=2, context_tokens=2, context_width=4)
    dit = DiT(config, audio_shape, video_shape)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    channels = audio_shape[0]
    description = {
        "model": dataclasses.asdict(config),
        "diffusion": dataclasses.asdict(DiffusionConfig()),
        "audio_shape": audio_shape,
        "video_shape": video_shape,
        "statistics": {name: {"mean": [0.1] * channels, "std": [0.5] * channels} for name in ("audio", "video")},
        "media": dataclasses.asdict(MEDIA),
        "autoencoder": {
            "path": str(folder / "autoencoder"),
            "fingerprint": pretrained.fingerprint(folder / "autoencoder"),
        },
    }
    pretrained.save(folder / "dit", "dit", description, dit.state_dict())
    return TinyModel(folder / "dit", folder / "autoencoder", folder / "other_autoencoder", MEDIA)


def with_context(model: TinyModel, folder: Path, kind: str, classes: list[str]) -> Path:
    """Return a weights folder like ``model``'s DiT, but trained on contexts of ``kind``."""
    stored = pretrained.read_config(model.dit, "dit")
    config = DiTConfig(**stored["model"])
    torch.manual_seed(1)
    dit = DiT(config, tuple(stored["audio_shape"]), tuple(stored["video_shape"]), len(classes))
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pretrained.save(folder, "dit", stored | {"context": {"kind": kind, "classes": classes}}, dit.state_dict())
    return folder


def with_continuation(model: TinyModel, folder: Path) -> TinyModel:
    """Return ``model`` with a DiT in ``folder`` that continues clips."""
    stored = pretrained.read_config(model.dit, "dit")
    config = DiTConfig(**{**stored["model"], "depth": 2, "continuation": True})
    torch.manual_seed(2)
    dit = DiT(config, tuple(stored["audio_shape"]), tuple(stored["video_shape"]))
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    description = stored | {"model": dataclasses.asdict(config), "layout": LAYOUT}
    pretrained.save(folder, "dit", description, dit.state_dict())
    return dataclasses.replace(model, dit=folder)


def save_autoencoder(folder: Path) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    config = AutoencoderConfig(
        latent_channels=4,
        audio_encoder=EncoderConfig(width=8, multipliers=[1, 1], blocks=1, heads=2),
        video_encoder=EncoderConfig(width=8, multipliers=[1], blocks=1, heads=2),
        semantic_width=16,
        decoder=UNetConfig(width=8, multipliers=[1, 2], blocks=1, attention=[True, False], heads=2),
    )
    vae = kl_vae.build(KLVAEConfig(channels=[8, 8, 8], blocks=1))
    autoencoder = Autoencoder(config, MEDIA, vae)
    for name, parameter in autoencoder.named_parameters():
        if not parameter.any() and "norm" not in name:  # zero-initialised paths, opened as by training
            torch.nn.init.normal_(parameter, std=0.1)
    autoencoder.save_pretrained(folder)
    return autoencoder.audio_shape, autoencoder.video_shape
