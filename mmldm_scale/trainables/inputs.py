"""What a training reads, checked in a fraction of a second and without torch: shard sets, weights, the run folder.

    checked = check_inputs(registered("autoencoder"), config)  # raises UserError, or returns what was found, in lines

Commands call it before they import what takes seconds, or submit a job. The files themselves are checked when they are
loaded: here it is only whether they are there, and whether a shard set is finished and complete.
"""

from functools import partial
from pathlib import Path
from typing import Any

from mmldm_scale.common.addresses import is_url
from mmldm_scale.common.checkpoint_folders import find_checkpoints
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import ShardTraining
from mmldm_scale.shards.json_files import DamagedSet
from mmldm_scale.shards.manifest import Kind, Manifest
from mmldm_scale.trainables.registry import Registration

SHARD_KEYS = ("shards", "validation")
# Keys, of any trainable, that name weights, and what a folder there may hold: one of these files, or checkpoints.
WEIGHTS_KEYS = {
    "kl_vae": ("config.json", "vae/config.json", "weights/config.json"),
    "unet": ("config.json", "unet/config.json"),
    "lpips": (),
    "init": ("config.json", "weights/config.json"),
    "context.embeddings": (),
    "preview.autoencoder": ("config.json", "weights/config.json"),
}
BEGINNING_KEYS = ("init",)  # not read by a run that has a checkpoint
DOWNLOAD = "; mmldm doctor --weights prints the command that downloads it"


def check_inputs(record: Registration, config: ShardTraining) -> list[str]:
    """Check that the inputs of ``config``, of the trainable ``record``, are there; return a line on each.

    Raises:
        UserError: a shard set is missing, unfinished, of another kind or lacks a tar, or weights are missing; a line
            for each of them.
    """
    has_checkpoint = bool(find_checkpoints(Path(config.run)))
    sets = [(key, location) for key in SHARD_KEYS for location in getattr(config, key, [])]
    weights = [(key, _value(config, key)) for key in WEIGHTS_KEYS if not (key in BEGINNING_KEYS and has_checkpoint)]
    looks = [
        *(partial(_shard_line, key, location, record.shards) for key, location in sets),
        *(partial(_weights_line, key, path) for key, path in weights if path),
    ]
    lines, problems = [], []
    for look in looks:
        try:
            lines.append(look())
        except UserError as error:
            problems.append(error)
    if len(problems) > 1:
        raise UserError("\n".join(map(str, problems)))
    if problems:
        raise problems[0]
    return lines


def check_set(location: str, kind: Kind) -> Manifest:
    """Return the manifest of the set in the folder ``location``.

    Raises:
        UserError: there is no finished set of ``kind``.
        DamagedSet: a tar is missing or has another size than in the manifest.
    """
    manifest = Manifest.read(location, kind)
    for entry in manifest.shards:
        if entry.bytes:  # else it holds no samples, and there is no tar
            tar = Path(location) / f"{entry.name}.tar"
            if not tar.is_file():
                raise DamagedSet(f"{tar}: missing; copy it again, or `python data_tools/shard.py repair`")
            if tar.stat().st_size != entry.bytes:
                sizes = f"{entry.bytes:,} bytes expected, {tar.stat().st_size:,} found"
                raise DamagedSet(f"{tar}: {sizes}; the file is damaged")
    return manifest


def _shard_line(key: str, location: str, kind: Kind) -> str:
    if is_url(location):
        return f"{key}={location}: a URL, which is not checked here"
    manifest = check_set(location, kind)
    return f"{key}={location}: {manifest.samples:,} {kind} in {len(manifest.shards)} shards"


def _weights_line(key: str, value: str) -> str:
    path = Path(value)
    if not path.exists():
        raise UserError(f"{key}={value}: no such file or folder{DOWNLOAD if path.parts[0] == 'weights' else ''}")
    if path.is_file():
        return f"{key}={value}: a file of {path.stat().st_size:,} bytes"
    contents = WEIGHTS_KEYS[key]
    if not any((path / name).is_file() for name in contents) and not (contents and find_checkpoints(path)):
        allowed = f"must hold {' or '.join([*contents, 'checkpoints'])}" if contents else "must be a file"
        raise UserError(f"{key}={value}: holds no weights; {allowed}")
    return f"{key}={value}: a folder with weights"


def _value(config: Any, key: str) -> str:
    """Return the path at ``key`` (dotted) of ``config``; empty if it is not set, or the trainable has no such key."""
    for part in key.split("."):
        config = getattr(config, part, None)
    return config or ""
