"""Small clip and latent sets, written through the same doors as the real ones."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.clip import Clip
from mmldm_scale.shards.clips import encode_clip
from mmldm_scale.shards.index import ShardIndex
from mmldm_scale.shards.latents import LatentSample, decode_latents, encode_latents, statistics, sums
from mmldm_scale.shards.manifest import DROPPED, Kind, Manifest, ShardEntry
from mmldm_scale.shards.writer import ShardWriter

MEDIA = MediaConfig(frames=4, fps=10, size=16, audio=AudioImageConfig(sample_rate=8000, f_max=4000))
AUDIO_SHAPE, VIDEO_SHAPE = (4, 2, 2), (4, 4, 4)


def clip(number: int) -> Clip:
    """A clip that differs with ``number``: a smooth picture that moves, a sine."""
    x = np.arange(16)
    picture = lambda i: np.stack(np.broadcast_arrays(8 * x + 10 * i, 8 * x[:, None] + number, 90), -1)  # noqa: E731
    frames = np.stack([picture(i) for i in range(MEDIA.frames)]).astype(np.uint8)
    time = np.arange(MEDIA.audio_samples) / MEDIA.audio.sample_rate
    return Clip(frames, (0.5 * np.sin(2 * np.pi * (200 + number) * time)).astype(np.float32))


def latent(number: int) -> LatentSample:
    """Posteriors that differ with ``number``."""
    draw = np.random.default_rng(number).standard_normal
    audio, video = (draw(AUDIO_SHAPE) for _ in range(2)), (draw(VIDEO_SHAPE) for _ in range(4))
    return LatentSample(*audio, *video)


def _add(shard: ShardWriter, kind: Kind, number: int) -> list[LatentSample]:
    meta = {"path": f"v/{number}.mp4", "label": "v", "class": 0, "start": 0.4 * number}
    if kind == "clips":
        shard.add(f"v_{number}-000000", encode_clip(clip(number), 8000, 95), meta)
        return []
    members = encode_latents(latent(number))
    shard.add(f"v_{number}-000000", members, meta)
    return [decode_latents(members)]


def write_set(folder: Path, kind: Kind, shards: int = 3, samples: int = 5, first: int = 0) -> Path:
    """Write a set of ``shards`` shards with ``samples`` samples and one drop each; the last has a sample less."""
    folder.mkdir()
    indexes: list[ShardIndex] = []
    for number in range(shards):
        count = samples - (number == shards - 1)
        with ShardWriter(folder, number) as shard:
            added = [_add(shard, kind, first + number * samples + i) for i in range(count)]
            shard.drop(f"silent_{number}-000000", f"v/silent_{number}.mp4", "silent", "RMS level -80.0 dB")
            latents = [sample for samples in added for sample in samples]
            indexes.append(shard.commit(sums(latents) if kind == "latents" else None))
    rows = [row for index in indexes for row in index.dropped]
    (folder / DROPPED).write_text("".join(json.dumps(row) + "\n" for row in rows))
    total = shards * samples - 1
    of_latents = {"audio_shape": AUDIO_SHAPE, "video_shape": VIDEO_SHAPE}
    if kind == "latents":
        of_latents["statistics"] = statistics(index.statistics for index in indexes)
    Manifest(
        kind=kind,
        media=MEDIA,
        classes=["v"],
        videos=total + shards,
        failed_files=0,
        candidates=total + shards,
        samples=total,
        dropped=shards,
        reasons={"silent": shards},
        shards=[ShardEntry.of(index) for index in indexes],
        **(of_latents if kind == "latents" else {}),
    ).write(folder)
    return folder


@pytest.fixture
def make_set() -> Callable[..., Path]:
    return write_set


@pytest.fixture
def make_clip() -> Callable[[int], Clip]:
    return clip


@pytest.fixture
def make_latent() -> Callable[[int], LatentSample]:
    return latent
