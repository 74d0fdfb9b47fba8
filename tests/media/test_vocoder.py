"""Sound comes back from mel magnitudes at the right pitch, level and time."""

import pytest
import torch

from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.vocoder import load_vocoder

PAPER = MediaConfig()
DEMO = MediaConfig(size=64, audio=AudioImageConfig(sample_rate=16000, hop_length=400, n_mels=64))
MEDIAS = pytest.mark.parametrize("media", [PAPER, DEMO], ids=["paper", "demo"])


def times(media: MediaConfig) -> torch.Tensor:
    return torch.arange(media.audio_samples) / media.audio.sample_rate


def resynthesised(waveform: torch.Tensor, media: MediaConfig) -> torch.Tensor:
    decibels = AudioImage(media).decibels(waveform)
    return load_vocoder(None, media.audio)(decibels, media.audio_samples)


@MEDIAS
def test_griffin_lim_keeps_pitch_and_level(media):
    tones = torch.stack([0.4 * torch.sin(2 * torch.pi * hertz * times(media)) for hertz in (330, 1000, 2500)])
    sound = resynthesised(tones, media)
    assert sound.shape == tones.shape
    spectrum = torch.fft.rfft(sound * torch.hann_window(sound.shape[1])).abs()
    peaks = spectrum.argmax(1) / media.seconds
    for peak, hertz in zip(peaks.tolist(), (330, 1000, 2500), strict=True):
        assert peak == pytest.approx(hertz, rel=0.05)
    ratio = sound.pow(2).mean(1).sqrt() / tones.pow(2).mean(1).sqrt()
    assert ratio.min() > 0.5  # a pure tone is hardest: where a mel spans many bins it comes back as a narrow noise
    assert ratio.max() < 1.3


@MEDIAS
def test_griffin_lim_keeps_time(media):
    """Onsets anywhere, both ends included, come back within 20 ms."""
    starts = [0.0, 0.311, 0.777, 1.234, 1.45]
    clicks = torch.zeros(len(starts), media.audio_samples)
    rate = media.audio.sample_rate
    noise = torch.randn(rate // 10, generator=torch.Generator().manual_seed(0)) * 0.2
    for line, start in zip(clicks, starts, strict=True):
        first = round(start * rate)
        line[first : first + len(noise)] = noise[: media.audio_samples - first]
    for line, start in zip(resynthesised(clicks, media), starts, strict=True):
        level = line.unfold(0, rate // 200, 1).pow(2).mean(1).sqrt()  # over 5 ms
        onset = (level > 0.5 * level.max()).nonzero()[0].item() / rate
        assert onset == pytest.approx(start, abs=0.02)


@MEDIAS
def test_griffin_lim_mels_come_back(media):
    """Measured on real clips: 0.5 to 2 dB of mean difference, depending on the sound."""
    generator = torch.Generator().manual_seed(0)
    bursts = torch.randn(1, media.audio_samples, generator=generator) * 0.1 * torch.exp(-6 * (times(media) % 0.4))
    images = AudioImage(media)
    error = images.decibels(resynthesised(bursts, media)) - images.decibels(bursts)
    assert error.abs().mean() < 1.5


def test_griffin_lim_depends_on_the_spectrogram_alone():
    decibels = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 60 - 60
    vocoder = load_vocoder(None, DEMO.audio)
    state = torch.get_rng_state()
    together = vocoder(decibels, DEMO.audio_samples)
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(123)
    assert vocoder(decibels[1:2], DEMO.audio_samples)[0].equal(together[1])
    assert load_vocoder(None, DEMO.audio)(decibels, DEMO.audio_samples).equal(together)


def test_silence_stays_silent():
    assert resynthesised(torch.zeros(1, DEMO.audio_samples), DEMO).abs().max() < 1e-3
