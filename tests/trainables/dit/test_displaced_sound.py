"""The synchrony loss's hard negative cannot be told from the sound alone; the sound shifted within its clip can."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmldm_scale.config import MediaConfig, load
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.dataset import LatentDataset
from tests.support.datasets.latent_sets import write_windows

MEDIA = MediaConfig(frames=16, fps=10, size=64)
VIDEOS, LENGTH = 96, 40  # of 40 frames
COLUMNS = 8  # of an audio latent: two frames each


def smooth_latents() -> Callable[[str, int], np.ndarray]:
    """Return the latents (4, 2, 8) of windows of slow random walks; an encoder's border is in their outer columns."""
    random = np.random.default_rng(0)
    steps = random.normal(0, 0.35, (VIDEOS, 4, 2, LENGTH))
    walks = random.normal(0, 1, (VIDEOS, 4, 2, 1)) + steps.cumsum(axis=-1)
    border = np.outer(random.normal(0, 1, 8), np.array([2, 0.5, 0, 0, 0, 0, 0.5, 2])).reshape(4, 2, COLUMNS)
    return lambda video, start: walks[int(video), ..., start : start + MEDIA.frames : 2] + border


def heard_latents() -> Callable[[str, int], np.ndarray]:
    """Return the audio images of windows of struck tones in a hiss of varying strength, 8 × 8 of their means."""
    random, rate = np.random.default_rng(1), MEDIA.audio.sample_rate
    samples = LENGTH * rate // MEDIA.fps
    time, image = np.arange(samples) / rate, AudioImage(MEDIA)
    sounds = []
    for _ in range(VIDEOS):
        hiss = random.normal(0, 0.03, samples) * (1.2 + np.sin(2 * np.pi * (random.random() + random.random() * time)))
        for onset, pitch in zip(random.uniform(-0.5, 4, 6), random.uniform(200, 4000, 6), strict=True):
            since = time - onset
            hiss += 0.2 * np.sin(2 * np.pi * pitch * since) * np.exp(-3 * since.clip(0)) * (since > 0)
        sounds.append(hiss.astype(np.float32))

    def latents(video: str, start: int) -> np.ndarray:
        first = start * rate // MEDIA.fps
        wave = torch.from_numpy(sounds[int(video)][first : first + MEDIA.audio_samples])
        picture = image.encode(wave[None])[:, :1]  # (1, 1, S, S), in [-1, 1]
        return nn.functional.adaptive_avg_pool2d(picture, (8, COLUMNS))[0].numpy()

    return latents


def accuracy(network: nn.Module, true: Tensor, wrong: Tensor, held_out: Tensor) -> float:
    """Return how many held-out latents a classifier tells right that learned from the others, as a share."""
    torch.manual_seed(0)
    for layer in network:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    values = torch.cat([true, wrong]).flatten(1)  # (2N, n)
    labels = torch.arange(2).repeat_interleave(len(true)).float()
    apart = held_out.repeat(2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        logits = network(values[~apart]).squeeze(1)
        nn.functional.binary_cross_entropy_with_logits(logits, labels[~apart]).backward()
        optimizer.step()
    with torch.no_grad():
        guesses = network(values[apart]).squeeze(1) > 0
    return (guesses == labels[apart].bool()).float().mean().item()


def rising_latents() -> Callable[[str, int], np.ndarray]:
    """Return the latents (4, 2, 8) of windows of a sound that rises evenly through each video: they tell the window."""
    random = np.random.default_rng(3)
    rises = np.linspace(-1, 1, LENGTH) + random.normal(0, 0.05, (VIDEOS, 4, 2, LENGTH))
    return lambda video, start: rises[int(video), ..., start : start + MEDIA.frames : 2]


@pytest.mark.parametrize(
    ("latents", "length", "stride"), [(smooth_latents, 40, 4), (heard_latents, 40, 4), (rising_latents, 30, 1)]
)
def test_sound_alone_does_not_tell_the_displaced_window(
    tmp_path: Path, one_thread: None, latents: Callable[[], Callable[[str, int], np.ndarray]], length: int, stride: int
) -> None:
    starts = range((LENGTH - length) // 2, (LENGTH + length) // 2 - MEDIA.frames + 1, stride)
    windows = [(str(video), start) for video in range(VIDEOS) for start in starts]
    folder = write_windows(tmp_path / "set", windows, MEDIA, 512, audio=latents())
    overrides = [f"shards={folder}", f"run={tmp_path / 'run'}", "contrastive.weight=1"]
    dataset = LatentDataset(load(DiTTraining, overrides=overrides))
    positions = [p for p in range(len(windows)) if dataset.samples.mixture.displaced_index(p)]  # each window once
    samples = dataset.__getitems__(positions)
    order = dataset.samples.mixture.orders[0]
    held_out = torch.tensor([int(windows[order(position)][0]) % 3 == 0 for position in positions])
    true, displaced = (torch.stack([sample[name] for sample in samples]) for name in ("audio", "displaced_audio"))
    assert all(sample["displaced_given"] for sample in samples)
    assert len(samples) > 0.4 * len(windows)
    shifts = np.random.default_rng(2).integers(COLUMNS // 4, COLUMNS - COLUMNS // 4, len(true), endpoint=True)
    rolled = torch.stack([one.roll(int(shift), dims=-1) for one, shift in zip(true, shifts, strict=True)])
    inputs = true[0].numel()
    linear = nn.Sequential(nn.Linear(inputs, 1))
    perceptron = nn.Sequential(nn.Linear(inputs, 64), nn.GELU(), nn.Linear(64, 1))
    for network in (linear, perceptron):
        assert accuracy(network, true, displaced, held_out) <= 0.6
    assert max(accuracy(network, true, rolled, held_out) for network in (linear, perceptron)) > 0.75
