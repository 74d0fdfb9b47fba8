"""MM-LDM at scale: latent diffusion for videos with sound, from shards to samples.

    from mmldm_scale import PRESETS, Autoencoder, DiT, Pipeline, ShardSet

The names are imported when they are first used, so that commands which need no model start at once.
"""

import importlib
from typing import Any

_HOMES = {
    "Autoencoder": "mmldm_scale.models.autoencoder.model",
    "DiT": "mmldm_scale.models.dit",
    "PRESETS": "mmldm_scale.models.dit",
    "Pipeline": "mmldm_scale.sampling.pipeline",
    "ShardSet": "mmldm_scale.shards.reader",
}

__all__ = ["PRESETS", "Autoencoder", "DiT", "Pipeline", "ShardSet"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmldm_scale' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
