from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import few_steps_decoding, few_steps_sampling
from benchmarks.curves import write
from mmldm_scale.diffusion.guided_sampling import Latents
from mmldm_scale.models.autoencoder.distillation import Distillation
from mmldm_scale.shards.reader import ShardSet
from tests.support.datasets.clip_sets import write_clips
from tests.support.tiny_models import tiny_autoencoder


def test_a_decoder_is_held_against_the_clips_and_against_its_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_steps_decoding, "TEACHER_STEPS", (4, 2))
    decoders = {name: tiny_autoencoder.opened(tiny_autoencoder.build()) for name in ("teacher", "distilled")}
    decoders["distilled"].distillation = Distillation((1, 4), "")
    curves = few_steps_decoding.measure(decoders, ShardSet(write_clips(tmp_path / "clips", 2), "clips"), 2)
    assert {name: list(curve) for name, curve in curves.items()} == {"teacher": [4, 2], "distilled": [1, 4]}
    assert curves["distilled"][4] == curves["teacher"][4]  # the same weights
    assert curves["teacher"][4]["teacher_psnr"] == 99
    assert curves["teacher"][2]["teacher_psnr"] < 99
    assert curves["teacher"][4]["teacher_mel_l1"] == 0 < curves["teacher"][2]["teacher_mel_l1"]
    write(tmp_path / "plot.svg", few_steps_decoding.panels(curves))
    texts = [text.text for text in ElementTree.parse(tmp_path / "plot.svg").iter() if text.tag.endswith("text")]
    assert {"distilled", "teacher", "1", "2", "4", "PSNR of frames, dB"} <= set(texts)


def test_the_energy_distance_is_that_of_the_distributions() -> None:
    """Zero for samples of one distribution, and for two points apart twice their distance."""
    random = torch.Generator().manual_seed(0)
    one, other = torch.randn(400, 3, generator=random), torch.randn(400, 3, generator=random)
    assert abs(few_steps_sampling.energy_distance(one, other)) < 0.02
    assert few_steps_sampling.energy_distance(one, other + 2) > 0.5
    points = torch.zeros(5, 3), torch.tensor([[3.0, 4.0, 0.0]]).repeat(5, 1)
    assert few_steps_sampling.energy_distance(*points) == pytest.approx(10)
    latents = Latents(torch.zeros(4, 2, 1, 1))
    assert few_steps_sampling.distances(latents, latents) == {"audio": 0}
