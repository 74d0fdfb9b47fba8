from dataclasses import replace

import pytest
import torch
from torch import nn

from mmldm_scale.models.dit import PRESETS, DiT
from mmldm_scale.models.flop_counter import flops_of
from mmldm_scale.models.flops import AUDIO_SHAPE, VIDEO_SHAPE, dit_macs, model_info, parameters

# The table of the paper's sizes: parameters (M), linear MACs (G) at 399 tokens and, without context, at 322.
TABLE = {"S": (131.6, 34.0, 27.4), "B": (384.5, 100.6, 81.2), "L": (1543.7, 407.3, 328.7)}
EXAMPLE = {
    "audio": torch.zeros(1, *AUDIO_SHAPE),
    "video": torch.zeros(1, *VIDEO_SHAPE),
    "time": torch.zeros(1, dtype=torch.long),
}


def on_meta(config):
    with torch.device("meta"):
        return DiT(config, AUDIO_SHAPE, VIDEO_SHAPE)


def forward_macs(model: DiT) -> int:
    return flops_of(lambda: model(*(x.to("meta") for x in EXAMPLE.values()))) // 2


def linear_macs_by_hooks(model: nn.Module) -> int:
    """Count d_in · d_out for each row that goes through each linear layer in one forward pass."""
    counts = []
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda layer, _, out: counts.append(out.numel() * layer.in_features))
    model(*(x.to("meta") if name in ("time", *model.config.modalities) else None for name, x in EXAMPLE.items()))
    return sum(counts)


@pytest.mark.parametrize("name", TABLE)
def test_presets_have_the_papers_parameters_and_macs(name):
    millions, giga, giga_without_context = TABLE[name]
    model = on_meta(PRESETS[name])
    assert round(parameters(model) / 1e6, 1) == millions
    assert round(linear_macs_by_hooks(model) / 1e9, 1) == giga
    without = on_meta(replace(PRESETS[name], context_tokens=0))
    assert round(linear_macs_by_hooks(without) / 1e9, 1) == giga_without_context


@pytest.mark.parametrize("context_tokens", [77, 0])
@pytest.mark.parametrize("name", TABLE)
def test_formula_equals_the_count(name, context_tokens):
    config = replace(PRESETS[name], context_tokens=context_tokens)
    macs = dit_macs(config, AUDIO_SHAPE, VIDEO_SHAPE)
    assert macs.linear + macs.attention == forward_macs(on_meta(config))
    assert macs.linear == linear_macs_by_hooks(on_meta(config))
    tokens = context_tokens + 1 + 64 + 1 + 256
    assert macs.attention == config.depth * 2 * tokens * tokens * config.width
    assert macs.flops == 2 * (macs.linear + macs.attention)


@pytest.mark.parametrize("depth", [4, 5])
def test_formula_counts_the_control_branch_and_the_tokens_of_the_clip_before(depth):
    config = replace(PRESETS["S"], depth=depth, continuation=True)
    macs = dit_macs(config, AUDIO_SHAPE, VIDEO_SHAPE)
    assert macs.linear + macs.attention == forward_macs(on_meta(config))
    assert macs.linear == linear_macs_by_hooks(on_meta(config))


@pytest.mark.parametrize(("modality", "positions"), [("audio", 64), ("video", 256)])
def test_formula_counts_the_tokens_of_one_modality_alone(modality, positions):
    config = replace(PRESETS["S"], modalities=[modality])
    macs = dit_macs(config, AUDIO_SHAPE, VIDEO_SHAPE)
    assert macs.linear == linear_macs_by_hooks(on_meta(config))
    assert macs.attention == config.depth * 2 * (77 + 1 + positions) ** 2 * config.width


def test_flops_of_a_convolution_and_a_linear_layer():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 8 * 8, 7))
    macs = flops_of(lambda: model(torch.zeros(2, 3, 8, 8))) // 2
    assert macs == 2 * (5 * 8 * 8 * 3 * 9 + 5 * 8 * 8 * 7)


def test_model_info_shows_each_preset_with_and_without_context_and_for_each_modality():
    rows = [line.split() for line in model_info().splitlines()[1:]]
    assert [row[0] for row in rows] == [name for name in PRESETS for _ in range(4)]
    assert [row[0] for row in rows][-12::4] == ["S", "B", "L"]
    assert " ".join(rows[-4]) == "L 36 × 1536, 24 77 399 1543.7 M 407.3 G 849.9 G audio, video"
    assert [" ".join(row[6:8]) + " " + row[-1] for row in rows[-2:]] == ["334 1538.9 video", "142 1538.9 audio"]
