"""A tiny trainable "autoencoder" with a discriminator, on clips of two classes and clips without a class."""

import functools
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import default_collate

from mmldm_scale.config import AdversarialConfig, AutoencoderConfig, DecodingConfig, DiscriminatorConfig, TrainingConfig
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.planning import memory
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.autoencoder.trainable import build_trainable, outline
from mmldm_scale.training.trainable import StepOutline, StepOutput, Trainable
from tests.support.datasets.clip_sets import write_clips
from tests.support.tiny_models import tiny_autoencoder

CLASSES = ("bar", "tone")
MODEL = """
model:
  latent_channels: 4
  audio_encoder: {width: 8, multipliers: [1, 1, 2], blocks: 1, heads: 2}
  video_encoder: {width: 8, multipliers: [1, 2], blocks: 1, heads: 2}
  semantic_width: 16
  contrastive_width: 8
  decoder: {width: 8, multipliers: [1, 2], blocks: 1, attention: [false, true], heads: 2}
discriminator: {width: 8, multipliers: [1, 2], attention: 1, heads: 2}
"""
CONFIG = (
    MODEL
    + """
kl_weight: 1.0e-4
contrastive_batch: 4
adversarial: {after: 8, ramp: 16, learning_rate: 1.0e-3}
preview: {steps: 2}
training: {global_batch: 8, micro_batch: 2, total_samples: 32, learning_rate: 1.0e-3, precision: fp32, zero_stage: 2,
           log_every: 8, checkpoint_every: 16, preview_every: 32, ema_lengths: [0.063], workers: 0,
           keep_checkpoints: 10, collective_timeout: 60}
"""
)
DISCRIMINATOR = DiscriminatorConfig(width=8, multipliers=[1, 2], attention=1, heads=2)


def write_data(folder: Path) -> Path:
    """Write clip shards, a KL-VAE and a training configuration into ``folder``; return ``folder``."""
    write_clips(folder / "clips", classes=CLASSES)
    torch.manual_seed(0)
    kl_vae.save(folder / "kl_vae", kl_vae.build(tiny_autoencoder.KL_VAE, scaling_factor=3.0))
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def train_arguments(data: Path, run: Path, *overrides: str) -> list[str]:
    """Return the arguments of ``mmldm`` that train an autoencoder on what :func:`write_data` wrote into ``data``."""
    paths = [f"shards={data / 'clips'}", f"kl_vae={data / 'kl_vae'}", f"run={run}"]
    return ["train", "autoencoder", "--config", str(data / "config.yaml"), *paths, *overrides]


def build(data: Path, seed: int = 0, model: AutoencoderConfig = tiny_autoencoder.CONFIG, **settings) -> Trainable:
    """Return the trainable on what :func:`write_data` wrote; its contrastive loss compares four clips."""
    torch.manual_seed(0)
    paths = {"shards": [str(data / "clips")], "kl_vae": str(data / "kl_vae")}
    settings = paths | {"kl_weight": 1e-4, "discriminator": DISCRIMINATOR} | settings
    training = TrainingConfig(seed=seed, micro_batch=4, global_batch=4, log_every=4)
    return build_trainable(
        AutoencoderTraining(model=model, preview=DecodingConfig(steps=2), training=training, **settings)
    )


def batch_of(trainable: Trainable, positions: range) -> dict[str, torch.Tensor]:
    """Return the samples at ``positions`` as a batch."""
    return default_collate([trainable.dataset[position] for position in positions])


def output_of(trainable: Trainable, positions: range) -> StepOutput:
    """Return the module's output for the samples at ``positions``."""
    return trainable.module(batch_of(trainable, positions))


def settings_of(weight: float = 0.1, recomputed: bool = False, **settings) -> AutoencoderTraining:
    """Return the configuration of a tiny autoencoder whose adversarial term has ``weight``."""
    return AutoencoderTraining(
        shards=["shards"],
        kl_vae="kl_vae",
        model=replace(tiny_autoencoder.CONFIG, activation_checkpointing=recomputed),
        discriminator=DISCRIMINATOR,
        adversarial=AdversarialConfig(weight=weight),
        training=TrainingConfig(**({"precision": "fp32", "micro_batch": 4} | settings)),
    )


def step_outline(config: AutoencoderTraining, device: str = "meta") -> StepOutline:
    """Return a micro-step of ``config`` on ``device``, its networks in working precision."""
    tiny = functools.partial(
        outline,
        media=tiny_autoencoder.MEDIA,
        classes=len(CLASSES),
        kl_vae_config=tiny_autoencoder.KL_VAE,
        device=device,
    )
    return memory.working_outline(tiny, config)
