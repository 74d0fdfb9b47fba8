"""The table of what a sample costs, on docs/few_steps.md, is what the models' shapes say."""

import re
from pathlib import Path

import torch

from mmldm_scale.config import AutoencoderConfig, KLVAEConfig, MediaConfig
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.autoencoder.sizes import decoding_macs
from mmldm_scale.models.dit import PRESETS
from mmldm_scale.models.flops import AUDIO_SHAPE, VIDEO_SHAPE, dit_macs

CLASSES = 9  # of Landscape
PAGE = Path(__file__).parents[2] / "docs/few_steps.md"
ROW = re.compile(r"^\| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)


def test_the_costs_of_a_sample_are_those_of_the_models() -> None:
    media = MediaConfig()
    with torch.device("meta"):
        autoencoder = Autoencoder(AutoencoderConfig(), media, kl_vae.build(KLVAEConfig()), [""] * CLASSES)
        drawn, rendered = decoding_macs(autoencoder)
    forward, pictures = dit_macs(PRESETS["S"], AUDIO_SHAPE, VIDEO_SHAPE), media.frames + 1
    rows = ROW.findall(PAGE.read_text())
    assert {(dit, decoder) for dit, decoder, *_ in rows} >= {("50", "50"), ("50", "4"), ("4", "4"), ("4", "2")}
    for dit, decoder, *shown in rows:
        costs = [
            (forward.linear + forward.attention) * int(dit),
            drawn * pictures * int(decoder),
            rendered * pictures,
        ]
        assert shown == [f"{cost / 1e12:.2f}" for cost in (*costs, sum(costs))]
