"""The typed configuration tree and how it is put together.

A command's configuration is one of the dataclasses here: its defaults, then YAML files in the order given, then
``key.sub=value`` overrides. ``load(DiTTraining, ["configs/dit/L.yaml"], ["training.seed=1"])`` returns it checked;
whatever does not fit raises :class:`UserError` naming the source, the key and what would fit. Lengths and intervals of
training are in samples: ``samples_seen`` is the only clock.
"""

from mmldm_scale.config.check import require
from mmldm_scale.config.compose import dump, load, restore
from mmldm_scale.config.media import AudioImageConfig, MediaConfig
from mmldm_scale.config.models import (
    AutoencoderConfig,
    Backend,
    ContextConfig,
    DecodingConfig,
    DiffusionConfig,
    DiscriminatorConfig,
    DiTConfig,
    EncoderConfig,
    KLVAEConfig,
    PatchDiscriminatorConfig,
    UNetConfig,
)
from mmldm_scale.config.render import render
from mmldm_scale.config.sampling import Reconstructing, Sampling
from mmldm_scale.config.training import (
    AdversarialConfig,
    AdversarialForm,
    ContrastiveConfig,
    LossWeights,
    Precision,
    ReadingConfig,
    ShardTraining,
    TrainingConfig,
)

__all__ = [
    "AdversarialConfig",
    "AdversarialForm",
    "AudioImageConfig",
    "AutoencoderConfig",
    "Backend",
    "ContextConfig",
    "ContrastiveConfig",
    "DecodingConfig",
    "DiTConfig",
    "DiffusionConfig",
    "DiscriminatorConfig",
    "EncoderConfig",
    "KLVAEConfig",
    "LossWeights",
    "MediaConfig",
    "PatchDiscriminatorConfig",
    "Precision",
    "ReadingConfig",
    "Reconstructing",
    "Sampling",
    "ShardTraining",
    "TrainingConfig",
    "UNetConfig",
    "dump",
    "load",
    "render",
    "require",
    "restore",
]
