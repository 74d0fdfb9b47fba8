"""CLAP from a folder as transformers publishes it, of a tiny model with random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.extractors import extractor_class
from mmldm_scale.evaluation.extractors.clap import Clap
from tests.support.datasets.clip_records import noises, of_sound

CPU = torch.device("cpu")
RATE = 48_000


def published(folder: Path, truncation: str = "rand_trunc") -> Path:
    audio = {"depths": [1, 1], "num_attention_heads": [2, 2], "patch_embeds_hidden_size": 8, "hidden_size": 16}
    text = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    config = ClapConfig.from_dict({"audio_config": audio, "text_config": text | {"vocab_size": 50}})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ClapModel(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    ClapFeatureExtractor(truncation=truncation).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return published(tmp_path_factory.mktemp("clap") / "unfused")


def test_the_vector_is_transformers_own(folder) -> None:
    clips = noises(2, 1.6, RATE)
    extractor = Clap(folder, CPU)
    inputs = torch.stack([extractor.prepare(clip) for clip in clips])

    waveforms = [clip.clip.waveform for clip in clips]
    frontend = ClapFeatureExtractor.from_pretrained(folder)
    given = frontend(waveforms, sampling_rate=RATE, return_tensors="pt")["input_features"].float()
    model = ClapModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model.get_audio_features(given).pooler_output

    torch.testing.assert_close(inputs, given)
    found = extractor.features(inputs)
    assert found.shape == (2, extractor.dimension) == (2, 512)
    assert (found[0] - found[1]).abs().max() > 1e-4
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(extractor.features(inputs[1:]), found[1:], rtol=1e-4, atol=1e-5)
    raw = Clap(folder, CPU, normalise=False).features(inputs)
    assert not torch.allclose(raw, found, atol=0.01)
    torch.testing.assert_close(torch.nn.functional.normalize(raw, dim=-1), found)


def test_of_a_longer_clip_the_first_10_seconds_are_heard_and_nothing_is_drawn(folder) -> None:
    (clip,) = noises(1, 10.5, RATE)
    extractor = Clap(folder, CPU)
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    whole = extractor.prepare(clip)
    assert np.array_equal(np.random.get_state()[1], state)
    assert whole.equal(extractor.prepare(of_sound(clip.clip.waveform[: 10 * RATE], RATE)))


def test_the_fingerprint_is_that_of_the_weights(folder) -> None:
    assert extractor_class("clap") is Clap
    assert Clap(folder, CPU).fingerprint() == sha256(folder / "model.safetensors")


def test_other_folders_are_refused(folder, tmp_path) -> None:
    with pytest.raises(UserError, match=r"fused: is a CLAP with feature fusion; give one without"):
        Clap(published(tmp_path / "fused", "fusion"), CPU)
    with pytest.raises(UserError, match="preprocessor_config.json: cannot be read: .*No such file"):
        Clap(tmp_path, CPU)
    (tmp_path / "preprocessor_config.json").write_bytes((folder / "preprocessor_config.json").read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    with pytest.raises(UserError, match="config.json: is not CLAP's: has no audio_config"):
        Clap(tmp_path, CPU)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="holds no weights; must have model.safetensors or pytorch_model.bin"):
        Clap(tmp_path, CPU)
    torch.save({"audio_model.x": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="its weights are not those of transformers' CLAP"):
        Clap(tmp_path, CPU)
