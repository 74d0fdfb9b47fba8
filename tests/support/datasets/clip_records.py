"""Clips as extractors get them: of given frames or sounds, random, or cut from a real video."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.media.clip import NO_FRAMES, NO_SOUND, Clip


def of_frames(frames: np.ndarray, frame_rate: float = 10.0, name: str = "clip") -> ClipRecord:
    """Return a clip without sound."""
    return ClipRecord(name, Clip(frames, NO_SOUND), frame_rate, 0)


def random_clip(count: int, height: int = 64, width: int = 64, seed: int = 0, frame_rate: float = 10.0) -> ClipRecord:
    """Return a clip of ``count`` frames of random pixels, a random colour for each 8 × 8 pixels."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (count, -(-height // 8), -(-width // 8), 3), np.uint8)
    frames = blocks.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    return of_frames(frames, frame_rate)


def cut(video: Path, starts: Sequence[int], count: int = 16) -> list[ClipRecord]:
    """Return clips of ``count`` frames of ``video``, every second one from each number in ``starts``, ascending."""
    wanted = {start + 2 * number for start in starts for number in range(count)}
    frames = {}
    with av.open(str(video)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                frames[number] = frame.to_ndarray(format="rgb24")
            if number == max(wanted):
                break
    clips = [np.stack([frames[start + 2 * number] for number in range(count)]) for start in starts]
    return [of_frames(clip, 12.5, f"{video.name} {start}") for clip, start in zip(clips, starts, strict=True)]


def of_sound(waveform: np.ndarray, sample_rate: int, name: str = "clip") -> ClipRecord:
    """Return a clip without frames."""
    return ClipRecord(name, Clip(NO_FRAMES, waveform.astype(np.float32)), 0, sample_rate)


def noises(count: int, seconds: float, sample_rate: int, seed: int = 0) -> list[ClipRecord]:
    """Return clips of noise, each with another colour and loudness."""
    random = np.random.default_rng(seed)
    clips = []
    for i in range(count):
        noise = random.standard_normal(round(seconds * sample_rate))
        clips.append(of_sound(np.convolve(noise, np.ones(i + 1) / (i + 1), "same") * 0.1 / (i + 1), sample_rate))
    return clips
