"""The sizes of clips and latents that a prediction is for: those of the configuration's shards, else the defaults."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import MediaConfig, load
from mmldm_scale.config.compose import read_yaml
from mmldm_scale.planning.workload import PLACEHOLDER
from mmldm_scale.shards.manifest import Manifest
from mmldm_scale.shards.remote.remote import read_manifest
from mmldm_scale.trainables.registry import Registration, registered

CONFIG = "config.yaml"


@dataclass(frozen=True)
class Sizes:
    """What a sample is.

    Attributes:
        manifest: of the set that tells; None: the paper's sizes.
        description: for the user.
    """

    manifest: Manifest | None
    description: str


def read_sizes(record: Registration, config: Any) -> Sizes:
    """Return the sizes of the samples in ``config.shards``, if that is set, for the trainable of ``record``.

    Raises:
        UserError: there is no finished set, or one of another kind.
    """
    default = f"{_clips(MediaConfig())}, the defaults; shards=DIR or --run DIR: those of other sets"
    if config.shards == [PLACEHOLDER]:
        return Sizes(None, default)
    manifest = read_manifest(config.shards[0], record.shards)
    if not record.takes_manifest():
        return Sizes(None, f"those of {record.outline_path}, which takes none of {config.shards[0]}")
    latents = [f"{name} latents {' × '.join(map(str, shape))}" for name, shape in manifest.shapes.items()]
    return Sizes(manifest, f"{', '.join([_clips(manifest.media), *latents])}, as in {config.shards[0]}")


def load_run(run: Path, overrides: list[str]) -> tuple[Registration, Any]:
    """Return what the run in the folder ``run`` trains, and its configuration with ``overrides``.

    Raises:
        UserError: the folder has no configuration, or one that is not valid.
    """
    file = run / CONFIG
    values = read_yaml(file)
    name = values.get("trainable") if hasattr(values, "get") else None
    if not isinstance(name, str):
        raise UserError(f"{file}: must say what is trained, as trainable: NAME")
    record = registered(name)
    return record, load(record.schema(), [file], overrides)


def _clips(media: MediaConfig) -> str:
    return f"clips of {media.frames} frames of {media.size} × {media.size} pixels at {media.fps:g} fps"
