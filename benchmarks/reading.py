"""Benchmark of reading shards: our reader and webdataset's decode pipeline, on the same tars, in one process.

    python -m benchmarks.reading --output benchmarks/results/reading_MACHINE.json [--latents SET] [--clips SET]

Both produce arrays: batches of float16 latents, or RGB frames with their waveform. Ours reads in training's order (a
shuffled mixture of one set) and tests every sample's CRC-32; webdataset reads the tars sequentially without tests.
Without --latents and --clips, sets of the paper's sizes are made in a temporary folder. The page cache is warm, the two
alternate, and the best of ROUNDS rounds counts, which is the least disturbed one.
"""

import argparse
import io
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import webdataset
from tqdm import tqdm

from benchmarks.report import machine, publish
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import Clip
from mmldm_scale.shards.clips import decode_clip, encode_clip
from mmldm_scale.shards.latents import LatentSample, decode_latent_batch, encode_latents, statistics, sums
from mmldm_scale.shards.manifest import Kind, Manifest, ShardEntry
from mmldm_scale.shards.mixture import Mixture
from mmldm_scale.shards.reader import ShardSet
from mmldm_scale.shards.writer import ShardWriter

BATCH = 32  # samples
ROUNDS = 5  # of each reader
AUDIO, VIDEO = (16, 8, 8), (16, 16, 16)  # (C, H, W) of the paper's latents


def main() -> int:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=Path, help="a finished set of latents")
    parser.add_argument("--clips", type=Path, help="a finished set of clips")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        latents = args.latents or make_latents(Path(folder) / "latents")
        clips = args.clips or make_clips(Path(folder) / "clips")
        results = {"machine": machine("webdataset"), "latents": of_latents(latents), "clips": of_clips(clips)}
    publish(results, args.output)
    return 0


def of_latents(folder: Path) -> dict[str, object]:
    """Return samples per second of each reader, and the ratios of ours to webdataset's."""
    shards = ShardSet(folder, "latents")
    stream = Mixture([shards], [], seed=0, window=64)

    def ours() -> Iterable[int]:
        for first in range(0, len(stream), BATCH):
            positions = range(first, min(first + BATCH, len(stream)))
            batch = decode_latent_batch([sample.members for sample in stream.read(positions)])
            yield len(batch.parts["audio"][0])

    def decoded() -> webdataset.WebDataset:
        names = ("audio.npy", "video.npy", "mirrored.npy")
        return webdataset.WebDataset(tars(folder), shardshuffle=False).decode().to_tuple(*names)

    rates = race(
        len(shards),
        {
            "ours, in batches": ours,
            "webdataset decode, in batches": lambda: (len(batch[0]) for batch in decoded().batched(BATCH)),
            "webdataset decode, one by one": lambda: (1 for _ in decoded()),
        },
    )
    return {**describe(shards), "samples_per_second": rates, "ours_is_times": ratios(rates)}


def of_clips(folder: Path) -> dict[str, object]:
    """Return clips per second of each reader, and the ratios of ours to webdataset's."""
    shards = ShardSet(folder, "clips")
    stream = Mixture([shards], [], seed=0, window=64)

    def ours(frames: list[int] | None) -> Iterable[int]:
        for position in range(len(stream)):
            decode_clip(stream.read([position])[0].members, frames)
            yield 1

    def theirs() -> Iterable[int]:
        pipeline = webdataset.WebDataset(tars(folder), shardshuffle=False)
        for _ in pipeline.decode("rgb8", webdataset.handle_extension("wav", waveform)):
            yield 1

    rates = race(
        len(shards),
        {
            "ours, all frames": lambda: ours(None),
            "ours, one frame of each clip": lambda: ours([0]),
            "webdataset decode, all frames": theirs,
        },
    )
    return {**describe(shards), "samples_per_second": rates, "ours_is_times": ratios(rates)}


def race(samples: int, readers: dict[str, Callable[[], Iterable[int]]]) -> dict[str, float]:
    """Return each reader's best rate in samples per second; they alternate."""
    best = dict.fromkeys(readers, float("inf"))
    for _ in tqdm(range(ROUNDS), "rounds", leave=False):
        for name, reader in readers.items():
            began = time.perf_counter()
            count = sum(reader())
            best[name] = min(best[name], time.perf_counter() - began)
            if count != samples:
                raise AssertionError(f"{name}: {count} of {samples} samples")
    return {name: round(samples / seconds, 1) for name, seconds in best.items()}


def ratios(rates: dict[str, float]) -> dict[str, float]:
    """Return each of our rates divided by each of webdataset's."""
    return {
        f"{ours} / {theirs}": round(rates[ours] / rates[theirs], 2)
        for ours in rates
        for theirs in rates
        if ours.startswith("ours") and theirs.startswith("webdataset")
    }


def describe(shards: ShardSet) -> dict[str, float]:
    """Return number of samples and shards, and bytes per sample."""
    size = sum(entry.bytes for entry in shards.manifest.shards)
    return {"samples": len(shards), "shards": len(shards.sizes), "bytes_per_sample": round(size / len(shards))}


def tars(folder: Path) -> list[str]:
    """Return the paths of a set's tars, in order."""
    return [str(tar) for tar in sorted(folder.glob("*.tar"))]


def waveform(data: bytes) -> np.ndarray:
    """Return the waveform (N,) float32 of a WAV file, for which webdataset has no decoder."""
    with wave.open(io.BytesIO(data)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def make_latents(folder: Path, shards: int = 8, samples: int = 256) -> Path:
    """Make a set of latents of the paper's shapes; random numbers take as long to read as real latents."""
    random = np.random.default_rng(0)
    folder.mkdir()
    entries, parts = [], []
    for number in tqdm(range(shards), "making latents", leave=False):
        with ShardWriter(folder, number) as shard:
            batch = []
            for i in range(samples):
                shapes = (AUDIO, AUDIO, VIDEO, VIDEO, VIDEO, VIDEO)
                batch.append(LatentSample(*(random.standard_normal(shape).astype(np.float16) for shape in shapes)))
                shard.add(f"video{number:03d}-{i:06d}", encode_latents(batch[-1]), {"path": "a.mp4", "class": 0})
            parts.append(sums(batch))
            entries.append(ShardEntry.of(shard.commit(parts[-1])))
    manifest = _manifest("latents", entries)
    manifest.audio_shape, manifest.video_shape, manifest.statistics = AUDIO, VIDEO, statistics(parts)
    manifest.write(folder)
    return folder


def make_clips(folder: Path, samples: int = 96) -> Path:
    """Make a set of clips of 16 frames of 256 × 256: smooth pictures with some grain, as recordings have it."""
    random, media = np.random.default_rng(0), MediaConfig()
    folder.mkdir()
    slope = np.add.outer(np.arange(media.size), np.arange(media.size))[..., None] / 3  # (S, S, 1)
    with ShardWriter(folder, 0) as shard:
        for i in tqdm(range(samples), "making clips", leave=False):
            grain = random.normal(0, 4, (media.frames, media.size, media.size, 3))
            frames = np.clip(slope + np.array([20, 40, 60]) + grain, 0, 255).astype(np.uint8)
            sound = random.uniform(-0.5, 0.5, media.audio_samples).astype(np.float32)
            members = encode_clip(Clip(frames, sound), media.audio.sample_rate, 95)
            shard.add(f"video-{i:06d}", members, {"path": "a.mp4", "class": 0})
        entries = [ShardEntry.of(shard.commit())]
    _manifest("clips", entries).write(folder)
    return folder


def _manifest(kind: Kind, entries: list[ShardEntry]) -> Manifest:
    count = sum(entry.samples for entry in entries)
    return Manifest(
        kind=kind,
        media=MediaConfig(),
        classes=["rain"],
        videos=1,
        failed_files=0,
        candidates=count,
        samples=count,
        dropped=0,
        reasons={},
        shards=entries,
    )


if __name__ == "__main__":
    sys.exit(main())
