"""VideoMAE from a folder as transformers publishes it, of a tiny model with random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
)

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.extractors.videomae import VideoMAE
from tests.support.datasets.clip_records import random_clip

CPU = torch.device("cpu")
WIDTH, CLASSES, FRAMES, SIZE = 24, 7, 4, 32


def published(folder: Path, kind: type = VideoMAEForVideoClassification, **config: object) -> Path:
    """Write a model with random weights as transformers does."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    shape = {"num_frames": FRAMES, "image_size": SIZE, "patch_size": 8, "num_labels": CLASSES}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(VideoMAEConfig(**sizes, **decoder, **shape, decoder_intermediate_size=32, **config))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    size, crop = {"shortest_edge": SIZE}, {"height": SIZE, "width": SIZE}
    VideoMAEImageProcessor(size=size, crop_size=crop).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    return published(tmp_path_factory.mktemp("videomae") / "classifier")


def tokens_of(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    """The last layer's tokens of transformers' own classifier."""
    model = VideoMAEForVideoClassification.from_pretrained(folder).eval()
    return model(pixels[None], output_hidden_states=True).hidden_states[-1][0]


def test_pixels_are_scaled_cropped_and_normalised(classifier) -> None:
    clip = random_clip(8, SIZE, SIZE + 10, frame_rate=20)
    extractor = VideoMAE(classifier, CPU, frame_rate=10)

    pixels = extractor.prepare(clip)

    middle = clip.clip.frames[::2, :, 5:-5].astype(np.float64) / 255
    expected = ((middle - 0.5) / 0.5).transpose(0, 3, 1, 2)  # this processor's default: mean and deviation of 0.5
    assert pixels.shape == (FRAMES, 3, SIZE, SIZE)
    assert np.abs(pixels.numpy() - expected).max() < 1e-5


def test_features_are_the_mean_of_tokens_and_logits_the_classifiers(classifier) -> None:
    features, logits = VideoMAE(classifier, CPU), VideoMAE(classifier, CPU, output="logits")
    pixels = features.prepare(random_clip(FRAMES))
    state = load_file(classifier / "model.safetensors")

    mean = tokens_of(classifier, pixels).mean(dim=0)
    centred = (mean - mean.mean()) / (mean.var(unbiased=False) + features.config.layer_norm_eps).sqrt()
    expected = centred * state["fc_norm.weight"] + state["fc_norm.bias"]

    torch.testing.assert_close(features.features(pixels[None])[0], expected, rtol=1e-4, atol=1e-4)
    expected_logits = state["classifier.weight"] @ expected + state["classifier.bias"]
    torch.testing.assert_close(logits.features(pixels[None])[0], expected_logits, rtol=1e-4, atol=1e-4)
    assert (features.dimension, features.classes, features.title) == (WIDTH, 0, "VideoMAE features")
    assert (logits.dimension, logits.classes, logits.title) == (CLASSES, CLASSES, "VideoMAE logits")


def test_a_clip_counts_by_itself_and_no_random_number_is_drawn(classifier) -> None:
    before = torch.get_rng_state()
    extractor = VideoMAE(classifier, CPU)
    inputs = torch.stack([extractor.prepare(random_clip(FRAMES, seed=seed)) for seed in range(4)])

    together = extractor.features(inputs)

    alone = torch.cat([extractor.features(clip[None]) for clip in inputs])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    assert torch.pdist(together).min() > 0.01
    assert torch.equal(torch.get_rng_state(), before)
    assert extractor.fingerprint() == sha256(classifier / "model.safetensors")


def test_a_pretrained_model_has_features_and_no_logits(tmp_path) -> None:
    folder = published(tmp_path / "pretrained", VideoMAEForPreTraining, use_mean_pooling=False)
    extractor = VideoMAE(folder, CPU)

    features = extractor.features(extractor.prepare(random_clip(FRAMES))[None])

    assert features.shape == (1, WIDTH)
    assert features.isfinite().all()
    with pytest.raises(UserError, match=r"pretrained: is no classifier, so it has no logits; use output 'features'"):
        VideoMAE(folder, CPU, output="logits")


def test_an_incomplete_folder_is_refused(classifier, tmp_path) -> None:
    state = load_file(classifier / "model.safetensors")
    name = next(name for name in state if "layer.1" in name)
    for folder in (tmp_path / "incomplete", tmp_path / "damaged", tmp_path / "pickled"):
        folder.mkdir()
        for file in ("config.json", "preprocessor_config.json"):
            (folder / file).write_bytes((classifier / file).read_bytes())
    save_file({key: tensor for key, tensor in state.items() if key != name}, tmp_path / "incomplete/model.safetensors")
    (tmp_path / "damaged/model.safetensors").write_bytes(b"damaged")
    torch.save(state, tmp_path / "pickled/pytorch_model.bin")

    with pytest.raises(UserError, match=r"model.safetensors: does not match its config.json: 1 weights are missing"):
        VideoMAE(tmp_path / "incomplete", CPU)
    with pytest.raises(UserError, match="damaged: cannot be read as a folder of VideoMAE") as raised:
        VideoMAE(tmp_path / "damaged", CPU)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"pickled: has no model.safetensors"):
        VideoMAE(tmp_path / "pickled", CPU)


def test_another_models_folder_is_refused(classifier, tmp_path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for file in classifier.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 2 * WIDTH}))

    with pytest.raises(UserError, match="other: cannot be read as a folder of VideoMAE") as raised:
        VideoMAE(folder, CPU)
    assert "\n" not in str(raised.value)
