"""``mmldm doctor --weights``: the pretrained weights, where the recipes' commands put them.

    weights/sd15/vae/, weights/sd15/unet/    Stable Diffusion 1.5, in diffusers' format
    weights/vgg16.pth                        torchvision's VGG16, the backbone of LPIPS
    weights/hifigan/                         a HiFi-GAN, in its authors' format

Each part is read by the loader of the jobs, which runs no code of a file. Size and sha256 are compared with those of
the published file; what can be read but differs is a warning.
"""

import functools
import shlex
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import AudioImageConfig, AutoencoderConfig
from mmldm_scale.doctor.findings import Check, Finding
from mmldm_scale.media.hifi_gan import load_generator
from mmldm_scale.models.autoencoder.stable_diffusion import load_kl_vae, load_unet
from mmldm_scale.models.autoencoder.unet import build_unet
from mmldm_scale.models.lpips import load_lpips

FOLDER = "weights"  # the default, in the current folder
SECONDS = 1800.0  # for a part: the largest has 3.4 GB, perhaps on a slow disk
LATENT = (4, 32, 32)  # (c, s, s) of the KL-VAE's latent of a picture of 256²
SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pth", "")  # of files with weights
STABLE_DIFFUSION = "hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --local-dir {folder}/sd15"
HIFI_GAN = "https://github.com/shivammehta25/Matcha-TTS-checkpoints/releases/download/v1.0/g_02500000"
HIFI_GAN_CONFIG = "https://raw.githubusercontent.com/jik876/hifi-gan/master/config_v1.json"


def _load_unet(path: Path) -> None:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: nothing is copied to this device. Names and shapes are compared
        config = AutoencoderConfig()
        unet = build_unet(config, [config.decoder.width * n for n in config.decoder.multipliers], LATENT)
        load_unet(unet, path)


def _load_hifi_gan(path: Path) -> None:
    load_generator(path, AudioImageConfig())


@dataclass(frozen=True)
class Part:
    """A part of the layout.

    Attributes:
        place: its file or folder, in the folder of the weights.
        name: what it is.
        use: which keys take it, and without it what happens.
        weights: its published weights, in ``place`` if that is a folder; "": ``place`` is the file.
        bytes: size of the published weights.
        sha256: of the published weights, in hex.
        load: reads it as the jobs do; raises UserError if that fails.
        commands: shell commands that download it; "{folder}" stands for the folder of the weights.
        optional: whether the recipes do without it.
    """

    place: str
    name: str
    use: str
    weights: str
    bytes: int
    sha256: str
    load: Callable[[Path], object]
    commands: tuple[str, ...]
    optional: bool = False


# Sizes and sha256: of the files at the named addresses; the sha256 of VGG16 begins as its name there does.
PARTS = (
    Part(
        "sd15/vae",
        "Stable Diffusion 1.5's KL-VAE",
        "kl_vae= of kl_vae and autoencoder trainings",
        "diffusion_pytorch_model.safetensors",
        334_643_276,
        "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c",
        load_kl_vae,
        (f"{STABLE_DIFFUSION} vae/config.json vae/diffusion_pytorch_model.safetensors",),
    ),
    Part(
        "sd15/unet",
        "Stable Diffusion 1.5's U-Net",
        "unet= of autoencoder trainings; without it the signal decoder starts from random weights",
        "diffusion_pytorch_model.safetensors",
        3_438_167_540,
        "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1",
        _load_unet,
        (f"{STABLE_DIFFUSION} unet/config.json unet/diffusion_pytorch_model.safetensors",),
    ),
    Part(
        "vgg16.pth",
        "torchvision's VGG16",
        "lpips= of kl_vae trainings and of mmldm reconstruct; without it there is no LPIPS",
        "",
        553_433_881,
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        load_lpips,
        ("curl -fL --create-dirs -o {folder}/vgg16.pth https://download.pytorch.org/models/vgg16-397923af.pth",),
    ),
    Part(
        "hifigan",
        "HiFi-GAN, UNIVERSAL_V1",
        "vocoder= of mmldm sample and reconstruct, for sound of 22,050 Hz and hop 256; without it Griffin-Lim",
        "g_02500000",
        55_788_858,
        "771eaf4876485a35e25577563d390c262e23c2421e4a8c929eacfde34a5b7a60",
        _load_hifi_gan,
        (
            f"curl -fL --create-dirs -o {{folder}}/hifigan/g_02500000 {HIFI_GAN}",
            f"curl -fL -o {{folder}}/hifigan/config.json {HIFI_GAN_CONFIG}",
        ),
        optional=True,
    ),
)


def checks(folder: Path) -> list[Check]:
    """Return a check for each part of the layout in ``folder``."""
    return [Check("weights", functools.partial(check_part, part, folder), SECONDS) for part in PARTS]


def check_part(part: Part, folder: Path) -> Iterator[Finding]:
    """Check that ``part`` is in ``folder``, that the jobs can load it, and whether it is the published one."""
    place = folder / part.place
    download = " && ".join(command.format(folder=shlex.quote(str(folder))) for command in part.commands)
    if not place.exists():
        text = f"{place}: missing: {part.name}, for {part.use}"
        yield Finding("warning" if part.optional else "error", "weights", text, download)
        return
    try:
        part.load(place)
    except UserError as error:
        yield Finding("error", "weights", str(error), f"download it again: {download}")
        return
    file = place / part.weights if part.weights else place
    others = [] if file.is_file() else sorted(f for f in place.iterdir() if f.suffix in SUFFIXES and f.is_file())
    for weights in others or [file]:
        yield _compare(part, weights)


def _compare(part: Part, file: Path) -> Finding:
    """Return the finding on the size and the sha256 of ``file``, which holds the weights of ``part``."""
    size, digest = file.stat().st_size, sha256(file)
    told = f"{file}: {size:,} bytes, sha256 {digest}"
    if digest == part.sha256:
        return Finding("ok", "weights", f"{told}: {part.name}, as published; for {part.use}")
    text = f"{told}: can be loaded, but is not {part.name} as published ({part.bytes:,} bytes, sha256 {part.sha256})"
    return Finding("warning", "weights", text, "compare it with a colleague's file")
