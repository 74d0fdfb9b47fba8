"""Shard sets of clips, and of lossless samples, as inputs of sampling: their keys, and a clip by its key."""

import functools
import hashlib
from pathlib import Path

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.modalities import Modality
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import Clip, MediaError
from mmldm_scale.shards.clips import clip_modalities, decode_clip
from mmldm_scale.shards.index import shard_name
from mmldm_scale.shards.json_files import DamagedSet
from mmldm_scale.shards.manifest import PLAN
from mmldm_scale.shards.reader import DamagedSample, ShardSet

OPEN_TARS = 16  # that are mapped at the same time


def is_set(path: Path) -> bool:
    """Return whether ``path`` is the folder of a shard set."""
    return any((path / name).is_file() for name in (PLAN, f"{shard_name(0)}.json"))


@functools.lru_cache(maxsize=1)
def _open(path: Path) -> ShardSet:
    shards = ShardSet(path, open_tars=OPEN_TARS)
    if shards.manifest.kind == "latents":
        raise UserError(f"--input {path}: contains latents; must be a set of clips or of lossless samples")
    return shards


def check(path: Path, media: MediaConfig) -> None:
    """Raise UserError unless the clips of the set ``path`` have the format ``media``.

    Raises:
        DamagedSet: the set is damaged.
    """
    found = _open(path).manifest.media
    pairs = {
        "frames": (found.frames, media.frames),
        "fps": (found.fps, media.fps),
        "size": (found.size, media.size),
        "audio.sample_rate": (found.audio.sample_rate, media.audio.sample_rate),
    }
    differing = [f"media.{name}={here:g}, not {needed:g}" for name, (here, needed) in pairs.items() if here != needed]
    if differing:
        raise UserError(f"--input {path}: its clips have {'; '.join(differing)}; give the videos of the set instead")


def fingerprint(path: Path) -> str:
    """Return the identity of the content of the set ``path``; raise DamagedSet if the set is damaged."""
    return _open(path).fingerprint


def keys(path: Path) -> list[str]:
    """Return the keys of the samples of the set ``path``, in its order; of equal keys the first one's."""
    shards = _open(path)
    return list(dict.fromkeys(shards.key(index) for index in range(len(shards))))


def read(path: Path, key: str, media: MediaConfig, needs: tuple[Modality, ...]) -> tuple[str, Clip]:
    """Return the sha256 of the members of the sample ``key`` of the set ``path``, and its clip.

    Raises:
        MediaError: it is damaged, gone, or lacks one of ``needs``.
    """
    try:
        shards = _open(path)
        indices = shards.indices_with_key(key)
        if not indices:
            raise MediaError("missing_file", f"{path}: has no sample {key}")
        members = shards[indices[0]].members
        modalities = clip_modalities(members)
        for modality, reason in (("audio", "no_audio_stream"), ("video", "no_video_stream")):
            if modality in needs and modality not in modalities:
                raise MediaError(reason, f"{path}: sample {key} has no {modality}")
        clip = decode_clip(members, media=media, modalities=modalities)
    except (DamagedSample, DamagedSet, ValueError) as error:
        raise MediaError("corrupt", f"{path}: sample {key}: {error}") from None
    digest = hashlib.sha256()
    for name in sorted(members):
        digest.update(name.encode() + b"\0" + members[name])
    return digest.hexdigest(), clip
