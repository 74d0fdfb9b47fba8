import numpy as np
import pytest
import torch

from benchmarks import vocoder
from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.encode import write_video


def sounds(way: vocoder.Way) -> torch.Tensor:
    """Return (1, N): noise in bursts."""
    media = way.media
    noise = torch.randn(1, media.audio_samples, generator=torch.Generator().manual_seed(0)) * 0.1
    return noise * torch.exp(-6 * (torch.arange(media.audio_samples) / media.audio.sample_rate % 0.4))


def test_a_vocoder_that_loses_nothing_is_at_no_distance():
    for way in vocoder.WAYS:
        wanted = sounds(way)
        found = vocoder.distances(wanted, way, lambda *_, wanted=wanted: wanted)
        assert found["mel_l1_db"] == found["mrstft"] == 0
        bands, frames = way.media.audio.n_mels, way.media.mel_frames
        small = way.media.size < max(bands, frames)  # than the spectrogram, which the picture then cannot keep
        assert (found["picture_l1_db"] > 0.05) == small


def test_the_distances_grow_with_what_is_lost():
    way = vocoder.WAYS[0]
    wanted = sounds(way)
    quieter = vocoder.distances(wanted, way, lambda *_: wanted / 2)
    assert quieter["mel_l1_db"].item() == pytest.approx(6.02, abs=0.2)  # but where the floor is reached
    silent = vocoder.distances(wanted, way, lambda *_: torch.zeros_like(wanted))
    assert silent["mrstft"] > quieter["mrstft"] > 0.5


def test_clips_of_a_video(tmp_path):
    video = tmp_path / "a.mp4"
    way = vocoder.WAYS[3]
    frames = np.zeros((40, 64, 64, 3), np.uint8)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 4 * way.media.audio.sample_rate).astype(np.float32)
    write_video(video, frames, 10.0, noise, way.media.audio.sample_rate)
    found = vocoder.of_way(way, [video], None)
    assert found["clips"] == found["videos"]["a.mp4"]["clips"] == 2  # 4 s hold two of 1.6 s
    assert 0 < found["mel_l1_db"] < 3
    write_video(video, frames[:10], 10.0, noise[: way.media.audio.sample_rate], way.media.audio.sample_rate)
    with pytest.raises(MediaError, match="too_short"):
        vocoder.of_way(way, [video], None)
