"""Small sets of latent shards, in which each sample has different values, so that a test can identify it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mmldm_scale.config import MediaConfig
from mmldm_scale.shards.latents import LatentSample, Sums, encode_latents, statistics, sums
from mmldm_scale.shards.manifest import Manifest, ShardEntry
from mmldm_scale.shards.reader import ShardSet
from mmldm_scale.shards.writer import ShardWriter

AUDIO, VIDEO = (4, 2, 2), (4, 3, 3)


def latent_sample(number: int, shift: float = 0.0) -> LatentSample:
    """Return sample ``number``, float16, with ``shift`` added to its means."""
    random = np.random.default_rng(number)
    scale = np.array([1, 2, 3, 4])[:, None, None]
    audio, video = (random.normal(1, 0.5, shape) * scale + shift for shape in (AUDIO, VIDEO))
    deviation = [np.full(shape, -2.0) for shape in (AUDIO, VIDEO)]
    half = [x.astype(np.float16) for x in (audio, deviation[0], video, deviation[1], video[..., ::-1], deviation[1])]
    return LatentSample(*half)


def write_latents(
    folder: Path,
    sizes: tuple[int, ...] = (20,),
    first: int = 0,
    meta: Callable[[int], dict[str, object]] = lambda number: {},
    **fields: object,
) -> Path:
    """Write a set of shards with ``sizes`` samples, numbered from ``first``; ``fields`` replace its manifest's.

    Args:
        meta: returns the JSON of a sample, given its number.
    """
    folder.mkdir(parents=True)
    entries, parts, number = [], [], first
    for shard_number, size in enumerate(sizes):
        with ShardWriter(folder, shard_number) as shard:
            samples = [latent_sample(number + i) for i in range(size)]
            for i, sample in enumerate(samples):
                shard.add(f"clip_{number + i:03d}", encode_latents(sample), meta(number + i))
            entries.append(ShardEntry.of(shard.commit()))
        parts.append(sums(samples))
        number += size
    dataclasses.replace(_manifest(entries, parts), **fields).write(folder)
    return folder


def _manifest(entries: list[ShardEntry], parts: list[Sums]) -> Manifest:
    count = sum(entry.samples for entry in entries)
    return Manifest(
        kind="latents",
        media=MediaConfig(size=64),
        classes=[],
        videos=count,
        failed_files=0,
        candidates=count,
        samples=count,
        dropped=0,
        reasons={},
        shards=entries,
        autoencoder={"path": "somewhere", "fingerprint": "abc"},
        audio_shape=AUDIO,
        video_shape=VIDEO,
        statistics=statistics(parts),
    )


def write_windows(
    folder: Path,
    windows: Sequence[tuple[str, int]],
    media: MediaConfig,
    size: int,
    key: str = "{video}-{start:06d}",
    labels: Mapping[str, str] | None = None,
    shift: Mapping[str, float] | None = None,
    audio: Callable[[str, int], np.ndarray] | None = None,
) -> Path:
    """Write a set whose samples are the ``windows`` (video, first frame) of clips in the format ``media``.

    Sample i is ``latent_sample(i)``.

    Args:
        size: samples of a shard.
        labels: label of each video that has one.
        shift: added to the means of all samples with a label, by label.
        audio: ``audio(video, start)`` returns the mean of a window's audio posterior, (C, H, W), which has hardly any
            spread; None: that of ``latent_sample``.
    """
    folder.mkdir(parents=True)
    entries, parts = [], []
    classes = sorted(set((labels or {}).values()))
    for number, first in enumerate(range(0, len(windows), size)):
        shard_windows = windows[first : first + size]
        shifts = [(shift or {}).get((labels or {}).get(video), 0.0) for video, _ in shard_windows]
        samples = [latent_sample(first + i, shifts[i]) for i in range(len(shard_windows))]
        if audio is not None:
            samples = [_with_audio(sample, audio(*w)) for sample, w in zip(samples, shard_windows, strict=True)]
        with ShardWriter(folder, number) as shard:
            for (video, start), sample in zip(shard_windows, samples, strict=True):
                label = (labels or {}).get(video)
                meta = {"path": f"{video}.mp4", "start": start / media.fps, "label": label}
                meta["class"] = None if label is None else classes.index(label)
                shard.add(key.format(video=video, start=start), encode_latents(sample), meta)
            entries.append(ShardEntry.of(shard.commit()))
        parts.append(sums(samples))
    manifest = _manifest(entries, parts)
    shape = samples[-1].audio_mean.shape
    dataclasses.replace(manifest, media=media, classes=classes, audio_shape=shape).write(folder)
    return folder


def _with_audio(sample: LatentSample, mean: np.ndarray) -> LatentSample:
    return dataclasses.replace(sample, audio_mean=mean, audio_logvar=np.full(mean.shape, -12.0))


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
