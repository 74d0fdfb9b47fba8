"""AudioCLIP's audio head, layer by layer against its formulas, with random weights in the authors' names and shapes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.extractors.audioclip import AudioClip, ESResNeXt
from tests.support.datasets.clip_records import noises
from tests.support.large_states import published, random_state

CPU = torch.device("cpu")
# Channels in and out and the kernel of each attention.
ATTENTIONS = ((64, 256, 3, 1), (256, 512, 1, 5), (512, 1024, 3, 1), (1024, 2048, 1, 5), (2048, 2048, 3, 5))
RATE = 44_100
SAMPLES = 3001  # 4 frames, with zeros around


def blackman_harris() -> np.ndarray:
    angle = 2 * np.pi * np.arange(1654) / 1654
    return sum(a * np.cos(i * angle) for i, a in enumerate((0.35875, -0.48829, 0.14128, -0.01168)))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = ESResNeXt()
    state = random_state(shapes)
    random = torch.Generator().manual_seed(1)
    state["fbsp.m"] = 0.2 + 2 * torch.rand(1025, generator=random)  # fractional: powers of negative numbers
    state["fbsp.fb"] = 0.5 + 2 * torch.rand(1025, generator=random)
    state["fbsp.fc"] = torch.arange(1025.0) + torch.rand(1025, generator=random)
    state["window"] = torch.from_numpy(blackman_harris()).float()
    return state


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("audioclip") / "AudioCLIP-Full-Training.pt"
    return published(
        file, {**{f"audio.{name}": tensor for name, tensor in state.items()}, "visual.proj": torch.ones(2)}
    )


@pytest.fixture(scope="module")
def extractor(weights) -> AudioClip:
    return AudioClip(weights, CPU)


@pytest.fixture(scope="module")
def waveforms() -> Tensor:
    clips = noises(3, SAMPLES / RATE, RATE)
    return torch.stack([torch.from_numpy(clip.clip.waveform) for clip in clips])


def decibels(waveform: np.ndarray, state: dict[str, Tensor]) -> np.ndarray:
    """What the network's convolutions get, (3, 341, T), from ``waveform`` in the network's range."""
    count = 1 + math.ceil((len(waveform) - 1654) / 561)
    missing = (count - 1) * 561 + 1654 - len(waveform)
    padded = np.concatenate([np.zeros(missing // 2), waveform, np.zeros(missing - missing // 2)])
    frames = np.zeros((count, 2048))
    for i in range(count):
        frames[i, 197 : 197 + 1654] = padded[i * 561 : i * 561 + 1654] * blackman_harris()
    m, fb, fc = (state[f"fbsp.{name}"].double().numpy()[:, None] for name in ("m", "fb", "fc"))
    t = np.linspace(-np.pi, np.pi, 2048)[None] + 1e-8
    sinc = (np.sin(fb * t / m) / (fb * t / m)).astype(complex)
    kernel = np.sqrt(fb) * sinc**m * np.exp(-1j * fc * t) / np.sqrt(2048)
    power = np.abs(kernel @ frames.T)[: 3 * 341] ** 2
    return 10 * np.log10(power).reshape(3, 341, count)


def network(x: Tensor, state: dict[str, Tensor], training: bool) -> Tensor:
    """The network after the transform, from its paper's table and the names in the file."""

    def normalised(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return x * weight[:, None, None] + bias[:, None, None]

    def block(x: Tensor, name: str, stride: int) -> Tensor:
        y = normalised(F.conv2d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1").relu()
        y = F.conv2d(y, state[f"{name}.conv2.weight"], stride=stride, padding=1, groups=32)
        y = normalised(F.conv2d(normalised(y, f"{name}.bn2").relu(), state[f"{name}.conv3.weight"]), f"{name}.bn3")
        if f"{name}.downsample.0.weight" in state:
            x = normalised(F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
        return (x + y).relu()

    def attention(x: Tensor, y: Tensor, name: str) -> Tensor:
        x, depth, point = F.adaptive_max_pool2d(x, y.shape[2:]), f"{name}.conv_depth", f"{name}.conv_point"
        kernel = state[f"{depth}.weight"]
        padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)
        x = F.conv2d(x, kernel, state[f"{depth}.bias"], padding=padding, groups=len(kernel))
        x = F.conv2d(x, state[f"{point}.weight"], state[f"{point}.bias"])
        return y * normalised(x, f"{name}.bn").sigmoid()

    x = normalised(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1").relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        y = x
        for i in range(blocks):
            y = block(y, f"layer{stage}.{i}", 2 if i == 0 and stage > 1 else 1)
        x = attention(x, y, f"att{stage}")
    x = attention(x, x.mean((2, 3), keepdim=True), "att5").flatten(1)
    return x @ state["fc.weight"].T + state["fc.bias"]


def assert_same_powers(found: Tensor, expected: np.ndarray) -> None:
    """Compare decibels as powers, because of the weakest float32 leaves few digits."""
    assert found.shape == expected.shape == (3, 341, 4)
    powers = 10 ** (expected / 10)
    np.testing.assert_allclose(10 ** (found.double().numpy() / 10), powers, rtol=2e-3, atol=1e-6 * powers.max())


def test_the_network_has_the_published_parameters(extractor) -> None:
    count = sum(parameter.numel() for parameter in extractor.network.parameters())
    resnext = 22_979_904  # ResNeXt-50 (32 × 4d) without its classifier
    attention = sum(i * (h * w + 1) + i * o + 3 * o for i, o, h, w in ATTENTIONS)
    assert count == resnext + attention + 3 * 1025 + 2048 * 1024 + 1024
    assert extractor.fingerprint() == sha256(extractor.weights_path)


def test_the_transform_is_its_formula(extractor, waveforms, state) -> None:
    x = waveforms[0] * 32768
    expected = decibels((x.double().numpy() + 32768) * 2 / 65535 - 1, state)
    assert_same_powers(extractor.network.decibels(x[None])[0], expected)


def test_a_full_scale_of_1_is_rounded_as_in_mm_diffusion(extractor, waveforms, state) -> None:
    """There the network gets [-1, 1] where it expects 16-bit samples, and float32 has steps of 2⁻⁸ above 32768."""
    x = waveforms[0].numpy()
    found = extractor.network.decibels(waveforms[:1])[0]
    rounded = (x + np.float32(32768)) * np.float32(2) / np.float32(65535) - np.float32(1)
    assert_same_powers(found, decibels(rounded.astype(np.float64), state))
    exact = decibels((x.astype(np.float64) + 32768) * 2 / 65535 - 1, state)
    assert np.abs(found.numpy() - exact).max() > 1


def test_a_vector_is_the_papers_and_a_clip_counts_by_itself(extractor, weights, waveforms, state) -> None:
    expected = network(extractor.network.decibels(waveforms * 32768), state, training=False)
    found = extractor.features(waveforms)
    assert found.shape == (3, 1024)
    assert expected.std(0).mean() > 0.01  # the clips differ
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=2e-3)
    torch.testing.assert_close(extractor.features(waveforms[1:2]), found[1:2], rtol=1e-2, atol=1e-3)
    quiet = AudioClip(weights, CPU, amplitude=1).features(waveforms[1:2])
    assert not torch.allclose(quiet, found[1:2], atol=0.01)


def test_in_training_mode_a_vector_depends_on_its_batch_alone(weights, waveforms, state) -> None:
    extractor = AudioClip(weights, CPU, mode="training")
    before = {name: tensor.clone() for name, tensor in extractor.network.state_dict().items()}
    first = extractor.features(waveforms)
    expected = network(extractor.network.decibels(waveforms * 32768), state, training=True)
    assert (first - expected).abs().max() < 0.1 * expected.std()

    other = extractor.features(waveforms[:2])
    assert (other - first[:2]).abs().max() > expected.std()
    assert extractor.features(waveforms).equal(first)  # whatever ran before
    assert all(tensor.equal(before[name]) for name, tensor in extractor.network.state_dict().items())
    with pytest.raises(UserError, match="mode=training needs batches of at least 2 clips"):
        extractor.features(waveforms[:1])


def test_other_weights_and_values_are_refused(weights, tmp_path) -> None:
    with pytest.raises(UserError, match="its weights are not those of AudioCLIP's audio head: .*Missing key"):
        AudioClip(published(tmp_path / "other.pt", {"audio.conv1.weight": torch.zeros(64, 3, 7, 7)}), CPU)
    with pytest.raises(UserError, match="mode is 'train'; must be one of evaluation, training"):
        AudioClip(weights, CPU, mode="train")
