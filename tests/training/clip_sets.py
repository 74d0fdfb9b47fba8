"""A small set of clip shards: moving bars and tones, each clip its own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmldm_scale.media.clip import Clip
from mmldm_scale.shards.clips import encode_clip
from mmldm_scale.shards.manifest import Manifest, ShardEntry
from mmldm_scale.shards.writer import ShardWriter
from tests.models.autoencoder.tiny import MEDIA


def clip(number: int) -> Clip:
    """Return clip ``number``: a bar that moves to the right, a tone."""
    frames = np.full((MEDIA.frames, MEDIA.size, MEDIA.size, 3), 37 * number % 200, np.uint8)
    for i, frame in enumerate(frames):
        frame[:, 6 * i : 6 * i + 6] = (255, 60 * number % 256, 0)
    time = np.arange(MEDIA.audio_samples) / MEDIA.audio.sample_rate
    return Clip(frames, (0.5 * np.sin(2 * np.pi * (200 + 150 * number) * time)).astype(np.float32))


def write_clips(folder: Path, count: int = 6, classes: Sequence[str] = ()) -> Path:
    """Write a set of ``count`` clips and return its folder; of ``classes``, in turn, and every so often of none."""
    folder.mkdir(parents=True)
    entries = []
    if count:
        with ShardWriter(folder, 0) as shard:
            for number in range(count):
                meta = {"class": (*range(len(classes)), None)[number % (len(classes) + 1)]}
                shard.add(f"clip_{number}", encode_clip(clip(number), MEDIA.audio.sample_rate, 95), meta)
            entries = [ShardEntry.of(shard.commit())]
    Manifest(
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
    ).write(folder)
    return folder
