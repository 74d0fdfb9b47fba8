"""MM-LDM at scale: latent diffusion for videos with sound, from shards to samples.

    from mmldm_scale import PRESETS, Autoencoder, Clip, DiT, MMLDMPipeline, Pipeline, Sampling, ShardSet, write_video

The names are imported when they are first used, so that commands which need no model start quickly.
"""

import importlib
from importlib import metadata
from typing import Any

_MODULES = {
    "PRESETS": "mmldm_scale.models.dit",
    "Autoencoder": "mmldm_scale.models.autoencoder.model",
    "Clip": "mmldm_scale.media.clip",
    "DiT": "mmldm_scale.models.dit",
    "MMLDMPipeline": "mmldm_scale.sampling.diffusers_pipeline.pipeline",
    "Pipeline": "mmldm_scale.sampling.pipeline",
    "Sampling": "mmldm_scale.config",
    "ShardSet": "mmldm_scale.shards.reader",
    "write_video": "mmldm_scale.media.encode",
}

__all__ = [
    "PRESETS",
    "Autoencoder",
    "Clip",
    "DiT",
    "MMLDMPipeline",
    "Pipeline",
    "Sampling",
    "ShardSet",
    "__version__",
    "write_video",
]

try:
    __version__ = metadata.version("mmldm_scale")
except metadata.PackageNotFoundError:  # a clone that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'mmldm_scale' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
