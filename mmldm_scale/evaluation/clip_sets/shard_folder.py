"""A shard set as a set of clips: the clips that ``shard.py clips`` cut, or what ``mmldm sample --lossless`` wrote."""

import hashlib
import json

import numpy as np

from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord, ClipSet
from mmldm_scale.evaluation.clip_sets.sampled_folder import with_label
from mmldm_scale.media.clip import MediaError
from mmldm_scale.shards.clips import clip_modalities, decode_clip
from mmldm_scale.shards.json_files import DamagedSet
from mmldm_scale.shards.reader import DamagedSample, ShardSet

OPEN_TARS = 16  # that are mapped at the same time; the order of names need not be that of the tars


class ShardFolder(ClipSet):
    """The clips of the finished shard set at ``path``, of kind "clips" or "samples", in the order of their keys.

    Raises:
        UserError: there is no finished set, it has latents, or a key repeats.
        DamagedSet: its index or manifest is damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._shards = ShardSet(path, open_tars=OPEN_TARS)
        manifest = self._shards.manifest
        if manifest.kind == "latents":
            raise UserError(f"{path}: contains latents, which have no frames and no sound; give the set of their clips")
        self.kind = manifest.kind
        keys = [self._shards.key(index) for index in range(len(self._shards))]
        self._order = np.argsort(keys, kind="stable") if keys else np.empty(0, np.int64)  # (n,) index in the shards
        self.names = [keys[index] for index in self._order]
        repeated = next((a for a, b in zip(self.names, self.names[1:], strict=False) if a == b), None)
        if repeated is not None:
            raise UserError(f"{path}: several samples have the key {repeated}; keys must be unique")

    def read(self, index: int) -> ClipRecord:
        media, name = self._shards.manifest.media, self.names[index]
        try:
            sample = self._shards[int(self._order[index])]
            clip = decode_clip(sample.members, media=media, modalities=clip_modalities(sample.members))
            info = dict(sample.meta)
        except (DamagedSample, DamagedSet, ValueError, TypeError) as error:
            raise MediaError("corrupt", f"{self.path}: sample {name}: {error}") from None
        frame_rate = media.fps if len(clip.frames) else 0.0
        sample_rate = media.audio.sample_rate if len(clip.waveform) else 0
        return ClipRecord(name, clip, frame_rate, sample_rate, with_label(info) if self.kind == "samples" else info)

    def fingerprint(self) -> str:
        """Return the sha256, in hex, of the tars' names, sizes and sha256, which the manifest has; reads no tar."""
        rows = [(entry.name, entry.bytes, entry.sha256) for entry in self._shards.manifest.shards]
        return hashlib.sha256(json.dumps(rows).encode("ascii")).hexdigest()
