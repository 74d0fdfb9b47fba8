"""Benchmark of the audio path: the loss from sound to mel spectrogram or audio image and, by a vocoder, back.

    python -m benchmarks.vocoder VIDEO… --output benchmarks/results/vocoder_MACHINE.json [--vocoder HIFIGAN]

Each clip (1.6 s or 4 s, some of each video, spread evenly) becomes a mel spectrogram, and a sound again, directly and
by way of the audio image. Two distances say how far that is from the clip, both 0 where nothing is lost:

- ``mel_l1_db``: the mean absolute difference of the two mel spectrograms in dB, between floor_db and ceiling_db;
- ``mrstft``: Parallel WaveGAN's multi-resolution STFT distance, spectral convergence plus log-magnitude
  (:func:`mmldm_scale.evaluation.metrics.mrstft.multi_resolution_stft`).

``picture_l1_db`` is what the picture alone loses of the spectrogram, before any vocoder. Griffin-Lim is measured, and
with --vocoder a HiFi-GAN beside it, in the ways whose mels it was made for.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.report import machine, publish
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.evaluation.metrics.mel_l1 import mean_absolute_error
from mmldm_scale.evaluation.metrics.mrstft import multi_resolution_stft
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.decode import probe, read_clips
from mmldm_scale.media.vocoder import Vocoder, load_vocoder

CLIPS = 4  # of each video
DEMO = AudioImageConfig(sample_rate=16000, hop_length=400, n_mels=64)  # configs/data/demo.yaml
WIDE = AudioImageConfig(hop_length=345)  # configs/data/audioset.yaml
# configs/data/landscape_44k.yaml
HIGH = AudioImageConfig(44100, n_fft=2048, win_length=2048, hop_length=512, n_mels=128, f_max=22050)


@dataclass(frozen=True)
class Way:
    """How a sound goes there and back."""

    name: str
    media: MediaConfig
    picture: bool  # by way of the audio image


WAYS = (
    Way("mel spectrogram, 22.05 kHz, 80 mels", MediaConfig(), picture=False),
    Way("picture of 256², 22.05 kHz, 80 mels", MediaConfig(), picture=True),
    Way("picture of 64², 22.05 kHz, 80 mels", MediaConfig(size=64), picture=True),
    Way("picture of 64², 16 kHz, 64 mels (the demo's)", MediaConfig(size=64, audio=DEMO), picture=True),
    Way("picture of 256², 22.05 kHz, 80 mels, 4 s at hop 256", MediaConfig(fps=4), picture=True),
    Way("picture of 256², 22.05 kHz, 80 mels, 4 s at hop 345", MediaConfig(fps=4, audio=WIDE), picture=True),
    Way("picture of 256², 44.1 kHz, 128 mels, hop 512", MediaConfig(audio=HIGH), picture=True),
)


def main() -> int:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="videos with sound")
    parser.add_argument("--vocoder", help="a HiFi-GAN to measure beside Griffin-Lim")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        results: dict[str, object] = {
            "machine": machine("torch"),
            "griffin_lim": [of_way(way, args.videos, None) for way in tqdm(WAYS, "ways")],
        }
        if args.vocoder:
            results["hifi_gan"] = [of_way(way, args.videos, args.vocoder) for way in WAYS if fits(args.vocoder, way)]
    except MediaError as error:
        parser.error(str(error))
    publish(results, args.output)
    return 0


def fits(path: str, way: Way) -> bool:
    """Say whether the HiFi-GAN at ``path`` was made for the mels of ``way``."""
    try:
        load_vocoder(path, way.media.audio)
    except UserError as error:
        print(error, file=sys.stderr)
        return False
    return True


def of_way(way: Way, videos: list[Path], path: str | None) -> dict[str, object]:
    """Return the mean distances over all clips, and over those of each video."""
    vocoder = load_vocoder(path, way.media.audio)
    parts, seconds = {}, 0.0
    for video in videos:
        sounds = torch.from_numpy(np.stack(list(waveforms(video, way.media))))
        began = time.process_time()
        parts[video.name] = distances(sounds, way, vocoder)
        seconds += time.process_time() - began
    every = {name: torch.cat([part[name] for part in parts.values()]) for name in next(iter(parts.values()))}
    clips = len(every["mrstft"])
    return {
        "way": way.name,
        "clips": clips,
        "cpu_seconds_per_clip": round(seconds / clips, 2),
        **means(every),
        "videos": {name: {"clips": len(part["mrstft"]), **means(part)} for name, part in parts.items()},
    }


def distances(sounds: Tensor, way: Way, vocoder: Vocoder) -> dict[str, Tensor]:
    """Return the distances of the module's text for each of ``sounds`` (B, N): (B,) each."""
    images = AudioImage(way.media)
    wanted = images.decibels(sounds)  # (B, n_mels, T)
    kept = images.to_decibels(images.encode(sounds)) if way.picture else wanted
    made = vocoder(kept, sounds.shape[1])
    return {
        "picture_l1_db": mean_absolute_error(kept, wanted),
        "mel_l1_db": mean_absolute_error(images.decibels(made), wanted),
        "mrstft": multi_resolution_stft(made, sounds),
    }


def means(values: dict[str, Tensor]) -> dict[str, float]:
    """Return the mean of each distance over its clips."""
    return {name: round(value.mean().item(), 3) for name, value in values.items()}


def waveforms(video: Path, media: MediaConfig) -> Iterator[np.ndarray]:
    """Yield the sounds (N,) of at most :data:`CLIPS` clips of ``video`` that do not overlap, spread evenly."""
    room = probe(video).seconds - media.seconds
    count = min(CLIPS, 1 + int(room / media.seconds))
    for clip in read_clips(video, list(np.linspace(0, room, count)), media):
        if isinstance(clip, MediaError):
            raise clip
        yield clip.waveform


if __name__ == "__main__":
    sys.exit(main())
