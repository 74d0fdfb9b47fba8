"""The memory that the presets take of each GPU, as predicted: ``print(memory_table())``."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmldm_scale.config import KLVAEConfig, MediaConfig, TrainingConfig, load, presets
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.flops import AUDIO_SHAPE, VIDEO_SHAPE
from mmldm_scale.planning.memory import MicroStep, Prediction, autoencoder_step, dit_step, predict
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.dit.config import DiTTraining

CONFIGS = presets.FOLDER
GIB = 2**30


@dataclass(frozen=True)
class Shipped:
    """A configuration on the number of GPUs that it is made for."""

    name: str
    gpu: str
    gpus: int
    files: tuple[str, ...]  # in CONFIGS
    classes: int = 0  # of the autoencoder's data set


SHIPPED = [
    Shipped(f"DiT-{size}", gpu, gpus, (f"dit/{size}.yaml", file))
    for size, gpus in (("S", 8), ("B", 16), ("L", 16))
    for gpu, file in (("A800 80 GB", "cluster/a800.yaml"), ("V100 32 GB", "cluster/v100.yaml"))
] + [
    Shipped(f"autoencoder, {name}", gpu, 8, (f"autoencoder/{name.lower()}.yaml", file), classes)
    for name, classes, gpu, file in (
        ("Landscape", 9, "A800 80 GB", "cluster/a800.yaml"),
        ("Landscape", 9, "V100 32 GB", "cluster/v100_autoencoder.yaml"),
        ("AudioSet", 0, "A800 80 GB", "cluster/a800.yaml"),
    )
]


def memory_table(shipped: Sequence[Shipped] = SHIPPED) -> str:
    """Return a table of ``shipped``, in GiB, with the parts of :class:`~mmldm_scale.planning.memory.Prediction`."""
    rows = [
        "predicted GiB of each GPU, without what CUDA, NCCL and cuDNN take for themselves and fragmentation wastes",
        f"{'':<25}{'GPUs':<18}{'precision':<14}{'micro-batch':>11}{'weights':>9}{'gradients':>11}{'optimizer':>11}"
        f"{'buckets':>9}{'activations':>13}{'total':>7}",
    ]
    for one in shipped:
        training, found = prediction(one)
        how, held = f"{training.precision}, ZeRO-{training.zero_stage}", found.states
        sizes = [held.parameters, held.gradients, held.optimizer, held.communication, found.activations, found.total]
        weights, gradients, optimizer, buckets, activations, total = (size / GIB for size in sizes)
        rows.append(
            f"{one.name:<25}{f'{one.gpus} × {one.gpu}':<18}{how:<14}{training.micro_batch:>11}{weights:>9.1f}"
            f"{gradients:>11.1f}{optimizer:>11.1f}{buckets:>9.1f}{activations:>13.1f}{total:>7.1f}"
        )
    return "\n".join(rows)


def prediction(shipped: Shipped) -> tuple[TrainingConfig, Prediction]:
    """Return how ``shipped`` trains, and what it takes of each GPU."""
    config, step = _step(shipped)
    return config.training, predict(step, config.training, shipped.gpus)


def _step(shipped: Shipped) -> tuple[AutoencoderTraining | DiTTraining, MicroStep]:
    files = [CONFIGS / file for file in shipped.files]
    if shipped.name.startswith("DiT"):
        config = load(DiTTraining, files, ["shards=DIR"])
        return config, dit_step(config, AUDIO_SHAPE, VIDEO_SHAPE)
    config = load(AutoencoderTraining, files, ["shards=DIR", "kl_vae=DIR"])
    with torch.device("meta"):
        vae = kl_vae.build(KLVAEConfig())  # Stable Diffusion's
    return config, autoencoder_step(config, MediaConfig(), vae, [""] * shipped.classes)
