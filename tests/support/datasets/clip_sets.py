"""Small sets of clip shards, in which each clip has a different bar and tone."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmldm_scale.media.clip import Clip
from mmldm_scale.shards.clips import encode_clip
from mmldm_scale.shards.manifest import Manifest, ShardEntry
from mmldm_scale.shards.writer import ShardWriter
from tests.support.tiny_models.tiny_autoencoder import MEDIA


def clip(number: int) -> Clip:
    """Return clip ``number``: a bar that moves to the right, with a tone of 200 + 150 · ``number`` Hz."""
    frames = np.full((MEDIA.frames, MEDIA.size, MEDIA.size, 3), 37 * number % 200, np.uint8)
    for i, frame in enumerate(frames):
        frame[:, 6 * i : 6 * i + 6] = (255, 60 * number % 256, 0)
    time = np.arange(MEDIA.audio_samples) / MEDIA.audio.sample_rate
    return Clip(frames, (0.5 * np.sin(2 * np.pi * (200 + 150 * number) * time)).astype(np.float32))


def write_clips(folder: Path, count: int = 6, classes: Sequence[str] = (), first: int = 0, **fields: object) -> Path:
    """Write a set of ``count`` clips, numbered from ``first``, and return its folder.

    Their classes alternate between ``classes`` and none; ``fields`` replace those of the set's manifest.
    """
    folder.mkdir(parents=True)
    entries = []
    if count:
        with ShardWriter(folder, 0) as shard:
            for number in range(count):
                meta = {"class": (*range(len(classes)), None)[number % (len(classes) + 1)]}
                encoded = encode_clip(clip(first + number), MEDIA.audio.sample_rate, 95)
                shard.add(f"clip_{first + number}", encoded, meta)
            entries = [ShardEntry.of(shard.commit())]
    manifest = Manifest(
        kind="clips",
        media=MEDIA,
        classes=list(classes),
        videos=count,
        failed_files=0,
        candidates=count,
        samples=count,
        dropped=0,
        reasons={},
        shards=entries,
    )
    dataclasses.replace(manifest, **fields).write(folder)
    return folder
