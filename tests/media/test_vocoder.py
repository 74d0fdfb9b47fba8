"""Sound comes back from mel magnitudes at the right pitch, level and time, and bad vocoders are refused in a line."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.errors import UserError
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


# --- HiFi-GAN --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.manual_seed(0)
    config = SpeechT5HifiGanConfig(
        model_in_dim=80,
        sampling_rate=22050,
        upsample_initial_channel=16,
        upsample_rates=[8, 8, 2, 2],
        upsample_kernel_sizes=[16, 16, 4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
    )
    model = SpeechT5HifiGan(config)
    for parameter in model.parameters():
        parameter.data.mul_(8)  # so that it is heard
    model.mean.normal_(std=2)  # what its inputs are normalised by
    model.save_pretrained(tmp_path / "hifigan")
    return tmp_path / "hifigan"


def test_hifi_gan_gets_natural_logarithms(folder):
    decibels = torch.rand(2, 80, 138, generator=torch.Generator().manual_seed(0)) * 130 - 110  # some below its clamp
    sound = load_vocoder(str(folder), PAPER.audio)(decibels, PAPER.audio_samples)
    assert sound.shape == (2, PAPER.audio_samples)
    model = SpeechT5HifiGan.from_pretrained(folder).eval()
    magnitude = (10 ** (decibels.double() / 20)).clamp(min=1e-5)
    with torch.no_grad():
        expected = model(magnitude.log().float().transpose(1, 2))[:, : PAPER.audio_samples]
    assert expected.std() > 1e-3
    assert (sound - expected).abs().max() < 1e-4 * expected.abs().max() + 1e-6


def test_hifi_gan_depends_on_the_spectrogram_alone(folder):
    decibels = torch.rand(3, 80, 20) * 60 - 60
    vocoder = load_vocoder(str(folder), PAPER.audio)
    assert vocoder(decibels[2:], 5000)[0].equal(vocoder(decibels, 5000)[2])
    assert vocoder(decibels, 6000).shape == (3, 6000)  # more than it gives: silence at the end


@pytest.mark.parametrize(
    ("key", "value"), [("sample_rate", 16000), ("n_mels", 64), ("hop_length", 400)], ids=["rate", "mels", "hop"]
)
def test_a_vocoder_for_other_mels_is_refused(folder, key, value):
    with pytest.raises(UserError, match=rf"{key} is {value}") as caught:
        load_vocoder(str(folder), dataclasses.replace(AudioImageConfig(), **{key: value}))
    assert str(folder) in str(caught.value)


def change_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state.pop("conv_post.bias")
    save_file(state, folder / "model.safetensors")


def change_config(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "model_type": "bert"}))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "no pickles"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 100), "cannot be loaded"),
        (change_weights, "conv_post.bias"),
        (change_config, "bert"),
    ],
    ids=["no config", "broken config", "pickle", "broken weights", "missing weight", "other model"],
)
def test_what_is_no_vocoder_is_refused_in_a_line(folder, damage, text):
    damage(folder)
    with pytest.raises(UserError, match=text) as caught:
        load_vocoder(str(folder), AudioImageConfig())
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="absent"):
        load_vocoder(str(tmp_path / "absent"), AudioImageConfig())


def test_magnitudes_are_decibels_of_20(folder):
    vocoder = load_vocoder(str(folder), PAPER.audio)
    seen = []
    vocoder.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    vocoder(torch.full((1, 80, 3), 20.0), 100)
    assert seen[0].mean().item() == pytest.approx(math.log(10))  # +20 dB is a magnitude of 10
