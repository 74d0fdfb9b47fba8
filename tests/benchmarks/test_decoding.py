import pytest
import torch

from benchmarks import decoding
from mmldm_scale.config import DecodingConfig, Reconstructing
from mmldm_scale.evaluation.reconstructor import Reconstructor
from mmldm_scale.shards.reader import ShardSet
from tests.support.datasets.clip_sets import write_clips
from tests.support.tiny_models import tiny_autoencoder


def test_each_sampler_is_held_against_the_original_and_against_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "STEPS", {"ddim": (2, 20), "unipc": (8,)})
    monkeypatch.setattr(decoding, "USUAL", "ddim 20")
    reconstructor = Reconstructor(
        tiny_autoencoder.opened(tiny_autoencoder.build()), Reconstructing(), torch.device("cpu")
    )
    clips = ShardSet(write_clips(tmp_path / "clips", 3))
    found = decoding.measure(reconstructor, clips, 1, limit=DecodingConfig("ddim", 20))
    assert found["clips"] == {"samples": 1, "frames": 4, "size": 32}
    rows = found["by_sampler"]
    assert list(rows) == ["ddim 2", "ddim 20", "unipc 8"]
    assert (rows["ddim 20"]["time"], rows["ddim 20"]["limit_psnr"]) == (1, 100)
    assert rows["ddim 2"]["limit_psnr"] < rows["unipc 8"]["limit_psnr"] < 100
    whole = decoding.measure(reconstructor, clips, 2, limit=DecodingConfig("ddim", 2))["by_sampler"]
    assert whole["ddim 2"]["limit_psnr"] == 100
    assert whole["ddim 2"]["psnr"] != pytest.approx(rows["ddim 2"]["psnr"], abs=1e-4)  # of another clip too
