"""openWakeWord's speech embedding: the real pretrained network, if its package is installed."""

import numpy as np
import pytest
import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.extractors import packaged_weights
from mmldm_scale.evaluation.extractors.openwakeword_embedding import OpenWakeWord
from tests.support.datasets.clip_records import noises, of_sound

CPU = torch.device("cpu")
RATE = 16_000


@pytest.fixture(scope="module")
def extractor() -> OpenWakeWord:
    pytest.importorskip("onnxruntime")
    try:
        return OpenWakeWord(None, CPU)
    except UserError as error:
        pytest.skip(str(error))


def melody(seed: int, seconds: float = 1.6) -> np.ndarray:
    """Decaying tones with overtones."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    sound = np.zeros_like(time)
    for start in np.arange(0, seconds, 0.2):
        after, pitch = np.clip(time - start, 0, None), random.uniform(200, 1200)
        for overtone in (1, 2, 3):
            sound += np.exp(-8 * after) * np.sin(2 * np.pi * pitch * overtone * after) / overtone
    return 0.1 * sound


def vectors(extractor: OpenWakeWord, sounds: list[np.ndarray]) -> torch.Tensor:
    return extractor.features(torch.stack([extractor.prepare(of_sound(sound, RATE)) for sound in sounds]))


def test_a_clip_has_one_vector_of_its_own(extractor) -> None:
    inputs = torch.stack([extractor.prepare(clip) for clip in noises(4, 1.0, RATE)])
    found = extractor.features(inputs)
    assert found.shape == (4, 96)
    assert torch.pdist(found).min() > 1  # other sounds, other vectors
    assert extractor.features(inputs[2:3]).equal(found[2:3])
    assert extractor.features(inputs).equal(found)


def test_the_steps_are_the_packages(extractor) -> None:
    """As ``openwakeword.utils.AudioFeatures`` of version 0.4.0 does with 16-bit samples."""
    sound = melody(0)
    samples = np.rint(sound.astype(np.float32) * 32767).astype(np.int16)
    levels = np.squeeze(extractor.frontend.run(None, {"input": samples[None].astype(np.float32)})[0]) / 10 + 2
    windows = np.stack([levels[start : start + 76] for start in range(0, len(levels) - 75, 8)])
    (output,) = extractor.network.run(None, {"input_1": windows[..., None]})
    expected = torch.from_numpy(output.squeeze((1, 2)).mean(0))
    torch.testing.assert_close(vectors(extractor, [sound])[0], expected, rtol=1e-3, atol=1e-3)


def test_more_noise_is_farther_away(extractor) -> None:
    sounds = [melody(seed) for seed in range(2)]
    clean = vectors(extractor, sounds)
    noise = np.random.default_rng(9).standard_normal(len(sounds[0]))
    distances = [
        (vectors(extractor, [sound + level * noise for sound in sounds]) - clean).norm(dim=1).mean().item()
        for level in (0.0003, 0.003, 0.03)
    ]
    assert distances == sorted(distances)
    assert distances[0] > 0


def test_the_windows_and_the_shortest_clip(extractor) -> None:
    assert extractor.prepare(of_sound(np.zeros(12_640), RATE)).shape == (1, 76, 32)
    assert extractor.prepare(of_sound(np.zeros(12_640 + 8 * 160), RATE)).shape == (2, 76, 32)
    with pytest.raises(UserError, match=r"has 0\.780 s of sound; openwakeword needs at least 0\.790 s"):
        extractor.prepare(of_sound(np.zeros(12_480), RATE))
    assert len(extractor.fingerprint()) == 64


def test_a_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setattr(packaged_weights.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"openwakeword is not installed, .*mmldm_scale\[evaluation-test\]"):
        OpenWakeWord(None, CPU)
