"""VGGish against its formulas, with random weights in the PyTorch port's names and shapes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.extractors.vggish import Vggish, VggishNetwork
from tests.support.datasets.clip_records import noises, of_sound
from tests.support.large_states import published, random_state

CPU = torch.device("cpu")
RATE = 16_000
CONVOLUTIONS = {0: True, 3: True, 6: False, 8: True, 11: False, 13: True}  # by index; whether a pooling follows


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = VggishNetwork(relu=False)
    return random_state(shapes)


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory) -> Path:
    return published(tmp_path_factory.mktemp("vggish") / "vggish-10086976.pth", state)


def mel(frequency: float) -> float:
    return 1127 * math.log(1 + frequency / 700)


def patches(waveform: np.ndarray, hop: int = 96) -> np.ndarray:
    """The log-mel patches of ``waveform``, by loops."""
    corners = np.linspace(mel(125), mel(7500), 66)
    filters = np.zeros((257, 64))
    for i in range(1, 257):
        place = mel(i * 8000 / 256)
        for band in range(64):
            left, centre, right = corners[band : band + 3]
            filters[i, band] = max(0, min((place - left) / (centre - left), (right - place) / (right - centre)))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    starts = range(0, len(waveform) - 399, 160)
    spectrum = np.array([np.abs(np.fft.rfft(waveform[start : start + 400] * window, 512)) for start in starts])
    frames = np.log(spectrum @ filters + 0.01)
    return np.stack([frames[i : i + 96] for i in range(0, len(frames) - 95, hop)])


@pytest.mark.parametrize(("patch_hop", "hop", "count"), [(0.96, 96, 2), (0.5, 50, 3)])
def test_the_patches_are_their_formula(weights, patch_hop, hop, count) -> None:
    (clip,) = noises(1, 2.1, RATE)
    found = Vggish(weights, CPU, patch_hop=patch_hop).prepare(clip).numpy()
    assert found.shape == (count, 96, 64)
    np.testing.assert_allclose(found, patches(clip.clip.waveform.astype(np.float64), hop), atol=1e-5)


@pytest.mark.parametrize("relu", [False, True])
def test_a_vector_is_the_mean_of_the_networks_outputs(weights, state, relu) -> None:
    extractor = Vggish(weights, CPU, relu=relu)
    inputs = torch.stack([extractor.prepare(clip) for clip in noises(2, 1.95, RATE)])  # (2, 2, 96, 64)

    x = inputs.flatten(0, 1)[:, None]
    for index, pooled in CONVOLUTIONS.items():
        x = F.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1).relu()
        x = F.max_pool2d(x, 2) if pooled else x
    x = torch.from_numpy(x.numpy().transpose(0, 2, 3, 1).reshape(4, -1))  # TensorFlow's order: channels last
    for index in (0, 2, 4):
        x = x @ state[f"embeddings.{index}.weight"].T + state[f"embeddings.{index}.bias"]
        x = x.relu() if index < 4 or relu else x

    found = extractor.features(inputs)
    assert found.shape == (2, 128)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    torch.testing.assert_close(found, (x[0::2] + x[1::2]) / 2, rtol=1e-3, atol=1e-5)
    if relu:
        torch.testing.assert_close(extractor.features(inputs[1:]), found[1:], rtol=1e-4, atol=1e-5)


def test_the_network_has_the_published_parameters(weights) -> None:
    count = sum(parameter.numel() for parameter in Vggish(weights, CPU).network.parameters())
    assert count == 72_141_184  # of the published file's tensors
    with pytest.raises(UserError, match=r"has 0\.974 s of sound; vggish needs at least 0\.975 s"):
        Vggish(weights, CPU).prepare(of_sound(np.zeros(15_590), RATE))
    with pytest.raises(UserError, match="patch_hop is 0; must be at least 0.01 s"):
        Vggish(weights, CPU, patch_hop=0)
