"""Small sets of latent shards: each sample its own numbers, so that it can be told by them."""

import dataclasses
from pathlib import Path

import numpy as np

from mmldm_scale.config import MediaConfig
from mmldm_scale.shards.latents import LatentSample, encode_latents, statistics, sums
from mmldm_scale.shards.manifest import Manifest, ShardEntry
from mmldm_scale.shards.reader import ShardSet
from mmldm_scale.shards.writer import ShardWriter

AUDIO, VIDEO = (4, 2, 2), (4, 3, 3)


def latent_sample(number: int) -> LatentSample:
    """Return sample ``number``, float16."""
    random = np.random.default_rng(number)
    scale = np.array([1, 2, 3, 4])[:, None, None]
    audio, video = (random.normal(1, 0.5, shape) * scale for shape in (AUDIO, VIDEO))
    deviation = [np.full(shape, -2.0) for shape in (AUDIO, VIDEO)]
    half = [x.astype(np.float16) for x in (audio, deviation[0], video, deviation[1], video[..., ::-1], deviation[1])]
    return LatentSample(*half)


def write_latents(folder: Path, sizes: tuple[int, ...] = (20,), first: int = 0, **fields: object) -> Path:
    """Write a set of shards with ``sizes`` samples, numbered from ``first``; ``fields`` change its manifest."""
    folder.mkdir(parents=True)
    entries, parts, number = [], [], first
    for shard_number, size in enumerate(sizes):
        with ShardWriter(folder, shard_number) as shard:
            samples = [latent_sample(number + i) for i in range(size)]
            for i, sample in enumerate(samples):
                shard.add(f"clip_{number + i:03d}", encode_latents(sample), {})
            entries.append(ShardEntry.of(shard.commit()))
        parts.append(sums(samples))
        number += size
    manifest = Manifest(
        kind="latents",
        media=MediaConfig(size=64),
        classes=[],
        videos=sum(sizes),
        failed_files=0,
        candidates=sum(sizes),
        samples=sum(sizes),
        dropped=0,
        reasons={},
        shards=entries,
        autoencoder={"path": "somewhere", "fingerprint": "abc"},
        audio_shape=AUDIO,
        video_shape=VIDEO,
        statistics=statistics(parts),
    )
    dataclasses.replace(manifest, **fields).write(folder)
    return folder


def damage(folder: Path, index: int) -> str:
    """Flip a bit of sample ``index`` of the set in ``folder``; return its key."""
    shards = ShardSet(folder)
    number = next(n for n in range(len(shards.sizes)) if index in shards.shard_range(n))
    tar = folder / f"shard-{number:06d}.tar"
    content = bytearray(tar.read_bytes())
    start, end = shards._spans[index].tolist()
    content[(start + end) // 2] ^= 1
    tar.write_bytes(content)
    return shards.key(index)
