"""PANNs' CNN14 against its formulas, with random weights in the authors' names and shapes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.extractors.cnn14 import Cnn14, Cnn14Network
from tests.support.datasets.clip_records import noises
from tests.support.large_states import published, random_state

CPU = torch.device("cpu")
RATE, WINDOW, HOP = 16_000, 512, 160
REAL, IMAGINARY = (f"spectrogram_extractor.stft.conv_{part}.weight" for part in ("real", "imag"))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The Fourier transform is the real one; the mel filters are random, so that they must be the file's."""
    with torch.device("meta"):
        shapes = Cnn14Network(WINDOW, HOP)
    state = random_state(shapes)
    angles = -2 * np.pi * np.outer(np.arange(WINDOW // 2 + 1), np.arange(WINDOW)) / WINDOW
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    for name, transform in ((REAL, np.cos(angles)), (IMAGINARY, np.sin(angles))):
        state[name] = torch.from_numpy((transform * hann)[:, None]).float()
    state["logmel_extractor.melW"] = torch.rand(WINDOW // 2 + 1, 64, generator=torch.Generator().manual_seed(3))
    return state


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory) -> Path:
    """The published 16 kHz file has the state of the authors' data loader beside the network."""
    file = tmp_path_factory.mktemp("cnn14") / "Cnn14_16k_mAP=0.438.pth"
    return published(file, state, iteration=3, sampler={"indexes": [np.arange(4)], "pointer": np.int64(2)})


@pytest.fixture(scope="module")
def waveforms(weights) -> Tensor:
    extractor = Cnn14(weights, CPU, sample_rate=RATE)
    return torch.stack([extractor.prepare(clip) for clip in noises(2, 0.32, RATE)])


def test_the_mel_levels_are_their_formula(weights, state, waveforms) -> None:
    waveform = waveforms[0].double().numpy()
    padded = np.pad(waveform, WINDOW // 2, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    frames = [np.fft.rfft(padded[start : start + WINDOW] * hann) for start in range(0, len(waveform) + 1, HOP)]
    mel = np.abs(np.array(frames)) ** 2 @ state["logmel_extractor.melW"].double().numpy()
    found = Cnn14(weights, CPU, sample_rate=RATE).network.log_mel(waveforms[:1])[0].numpy()
    np.testing.assert_allclose(found, 10 * np.log10(mel).T, atol=1e-3)


def test_silence_is_bounded(weights) -> None:
    assert Cnn14(weights, CPU, sample_rate=RATE).network.log_mel(torch.zeros(1, 5000)).unique().item() == -100


def test_embedding_and_logits_are_the_papers(weights, state, waveforms) -> None:
    def normalised(x: Tensor, name: str) -> Tensor:
        keys = (f"{name}.{key}" for key in ("running_mean", "running_var", "weight", "bias"))
        mean, var, weight, bias = (state[key][:, None, None] for key in keys)
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    extractor = Cnn14(weights, CPU, sample_rate=RATE)
    x = extractor.network.log_mel(waveforms)[..., None]  # (B, 64, T, 1): a channel for each band
    x = normalised(x, "bn0").permute(0, 3, 2, 1)  # (B, 1, T, 64)
    for block in range(1, 7):
        for layer in (1, 2):
            name = f"conv_block{block}"
            x = F.conv2d(x, state[f"{name}.conv{layer}.weight"], padding=1)
            x = normalised(x, f"{name}.bn{layer}").relu()
        x = F.avg_pool2d(x, 2) if block < 6 else x
    x = x.mean(3)
    x = x.max(2).values + x.mean(2)
    embedding = (x @ state["fc1.weight"].T + state["fc1.bias"]).relu()
    logits = embedding @ state["fc_audioset.weight"].T + state["fc_audioset.bias"]

    found = extractor.features(waveforms)
    assert (extractor.dimension, found.shape) == (2048, (2, 2048))
    assert found.std(0).mean() > 1e-4  # the clips differ
    torch.testing.assert_close(found, embedding, rtol=1e-3, atol=1e-4)
    classifier = Cnn14(weights, CPU, sample_rate=RATE, output="logits")
    assert (classifier.dimension, classifier.classes) == (527, 527)
    torch.testing.assert_close(classifier.features(waveforms[1:]), logits[1:], rtol=1e-3, atol=1e-4)  # clip by clip


def test_the_32_khz_network_has_the_published_parameters() -> None:
    with torch.device("meta"):
        network = Cnn14Network(1024, 320)
    fixed = 2 * 513 * 1024 + 513 * 64  # the transform and the mel filters, which the paper does not count
    assert sum(parameter.numel() for parameter in network.parameters()) == 80_753_615 + fixed  # the paper: 80.8 M


def test_weights_of_another_rate_and_wrong_values_are_refused(weights) -> None:
    with pytest.raises(UserError, match="its weights are not those of PANNs' CNN14 for 32000 Hz: .*size mismatch"):
        Cnn14(weights, CPU)
    with pytest.raises(UserError, match="sample_rate is 8000; must be one of 32000, 16000"):
        Cnn14(weights, CPU, sample_rate=8000)
    with pytest.raises(UserError, match="output is 'classes'; must be one of embedding, logits"):
        Cnn14(weights, CPU, output="classes")
    with pytest.raises(UserError, match=r"has 0\.300 s of sound; cnn14 needs at least 0\.310 s"):
        Cnn14(weights, CPU, sample_rate=RATE).prepare(noises(1, 0.3, RATE)[0])
