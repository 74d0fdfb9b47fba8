"""Sound to picture and back, against librosa's definitions spelled out in numpy and with measured bounds."""

import numpy as np
import pytest
import torch

from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.audio_image import AudioImage

PAPER = MediaConfig()  # 256 px, 80 mels × 138 frames
DEMO = MediaConfig(size=64, audio=AudioImageConfig(sample_rate=16000, hop_length=400, n_mels=64))  # 64 × 64


def sound(media: MediaConfig, seed: int = 0) -> torch.Tensor:
    """Return (2, N): bursts of noise and a sweep, so that levels span the whole range."""
    rng = np.random.default_rng(seed)
    time = np.arange(media.audio_samples) / media.audio.sample_rate
    sweep = 0.5 * np.sin(2 * np.pi * (200 * time + 1500 * time**2))
    bursts = 0.5 * rng.standard_normal(len(time)) * np.exp(-20 * (time % 0.4))
    return torch.tensor(np.stack([sweep, bursts]), dtype=torch.float32).clamp(-1, 1)


def slaney_mel(hertz: np.ndarray) -> np.ndarray:
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + np.log(np.maximum(hertz, 1e-9) / 1000) * 27 / np.log(6.4))


def slaney_hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


def reference_decibels(waveform: np.ndarray, audio: AudioImageConfig) -> np.ndarray:
    """HiFi-GAN's mel spectrogram, (n_mels, T), in plain numpy."""
    side = (audio.n_fft - audio.hop_length) // 2
    whole = np.pad(waveform.astype(np.float64), (0, -len(waveform) % audio.hop_length))
    padded = np.pad(whole, side, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(audio.n_fft) / audio.n_fft)
    starts = range(0, len(padded) - audio.n_fft + 1, audio.hop_length)
    spectrum = np.abs([np.fft.rfft(padded[s : s + audio.n_fft] * window) for s in starts])  # (T, bins)
    edges = slaney_hertz(np.linspace(slaney_mel(audio.f_min), slaney_mel(audio.f_max), audio.n_mels + 2))
    hertz = np.fft.rfftfreq(audio.n_fft, 1 / audio.sample_rate)
    mels = []
    for low, middle, high in zip(edges[:-2], edges[1:-1], edges[2:], strict=True):
        rising, falling = (hertz - low) / (middle - low), (high - hertz) / (high - middle)
        mels.append(spectrum @ (np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)))
    return np.clip(20 * np.log10(np.maximum(mels, 1e-5)), audio.floor_db, audio.ceiling_db)


@pytest.mark.parametrize("media", [PAPER, DEMO], ids=["paper", "demo"])
def test_mels_are_hifi_gans(media):
    waveform = sound(media)
    decibels = AudioImage(media).decibels(waveform)
    assert decibels.shape == (2, media.audio.n_mels, media.mel_frames)
    for got, one in zip(decibels.numpy(), waveform.numpy(), strict=True):
        assert np.abs(got - reference_decibels(one, media.audio)).max() < 0.02


@pytest.mark.parametrize(("media", "bound"), [(PAPER, 2e-4), (DEMO, 5e-5)], ids=["paper", "demo"])
def test_the_way_back_is_exact(media, bound):
    """Measured on speech, music and noise: at most 6e-5 dB at 256 px, 1e-5 dB at 64 px."""
    images, waveform = AudioImage(media), sound(media)
    picture = images.encode(waveform)
    assert picture.shape == (2, 3, media.size, media.size)
    assert picture.dtype == torch.float32
    assert picture.abs().max() <= 1
    assert picture[0, 0].equal(picture[0, 2])
    assert (images.to_decibels(picture) - images.decibels(waveform)).abs().max() < bound


@pytest.mark.parametrize(("hop", "frames", "fits"), [(256, 345, False), (344, 257, False), (345, 256, True)])
def test_the_way_back_is_exact_if_the_frames_fit_the_columns_and_a_warning_says_if_not(hop, frames, fits):
    """4 s at 22,050 Hz are 88,200 samples; 256 columns hold them from hop 88,200 / 256 = 344.5 on."""
    media = MediaConfig(fps=4, audio=AudioImageConfig(hop_length=hop))
    assert media.mel_frames == frames
    images, waveform = AudioImage(media), sound(media)
    error = (images.to_decibels(images.encode(waveform)) - images.decibels(waveform)).abs().mean()
    if fits:
        assert error < 1e-4
        assert media.audio_image_warnings == []
    else:
        assert error > 0.02
        expected = f"media.audio.hop_length={hop}: {frames} mel frames in the 256 columns of the audio image"
        (warning,) = media.audio_image_warnings
        assert warning.startswith(expected)
        assert warning.endswith("hop_length=345 or more fits")


def test_a_picture_smaller_than_the_spectrogram_keeps_it_as_well_as_it_can():
    media = MediaConfig(size=64)
    images, waveform = AudioImage(media), sound(media)
    back = images.to_decibels(images.encode(waveform))
    assert back.shape == images.decibels(waveform).shape
    assert (images.encode(waveform) - _encode_decibels(images, back)).abs().mean() < 0.02
    columns, rows = media.audio_image_warnings
    assert columns.endswith("hop_length=552 or more fits")  # 1.6 s at 22,050 Hz are 35,280 samples
    assert rows.startswith("media.audio.n_mels=80: 80 mel bands in the 64 rows of the audio image")
    assert rows.endswith("n_mels=64 or fewer fits")


def _encode_decibels(images: AudioImage, decibels: torch.Tensor) -> torch.Tensor:
    levels = (decibels - images.audio.floor_db) / (images.audio.ceiling_db - images.audio.floor_db) * 2 - 1
    rows = torch.nn.functional.interpolate(levels[:, None], (64, 64), mode="bilinear", antialias=True)
    return rows.flip(-2)


def test_levels_and_directions():
    """-80 dB is black and +20 dB white; time runs right, frequency up."""
    images = AudioImage(DEMO)
    silent = images.encode(torch.zeros(1, DEMO.audio_samples))
    assert silent.eq(-1).all()
    assert images.to_decibels(silent).eq(-80).all()
    assert images.to_decibels(torch.ones(1, 3, 64, 64)).sub(20).abs().max() < 1e-4
    time = torch.arange(DEMO.audio_samples) / 16000
    late_and_high = torch.sin(2 * torch.pi * 6000 * time) * (time > 1.2)
    picture = images.encode(late_and_high[None])[0, 0]
    row, column = divmod(picture.argmax().item(), 64)
    assert row < 12
    assert column > 47


def test_an_imperfect_picture_gives_levels_within_the_range():
    images = AudioImage(PAPER)
    noisy = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2
    decibels = images.to_decibels(noisy)
    assert decibels.min() >= -80
    assert decibels.max() <= 20


def test_reduced_precision_around_it_changes_nothing():
    images, waveform = AudioImage(DEMO), sound(DEMO)
    plain = images.encode(waveform)
    with torch.autocast("cpu", torch.bfloat16):
        assert images.encode(waveform).equal(plain)
        assert images.to_decibels(plain).dtype == torch.float32
