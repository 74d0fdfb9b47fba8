"""Features added to the U-Net, against diffusers' own forward pass with hooks on the layers whose outputs it keeps."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from mmldm_scale.config import UNetConfig
from mmldm_scale.models.autoencoder.unet import UNetInputs, build_unet, predict_inside, predict_skips
from tests.support.tiny_models import tiny_autoencoder

GEOMETRY = UNetConfig(width=16, multipliers=[1, 2, 4], blocks=2, attention=[True, False, True], heads=4)
OUTPUTS = 1 + 2 + 1 + 2 + 1 + 2 + 1  # stem, blocks and downsampler of each level, middle


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = build_unet(replace(tiny_autoencoder.CONFIG, decoder=GEOMETRY), [16, 32, 64], (4, 8, 8))
    torch.nn.init.normal_(unet.class_embedding.linear_2.weight, std=0.2)
    return unet.eval()


def layers(unet: UNet2DConditionModel) -> list[torch.nn.Module]:
    """Return the layers whose outputs the encoder keeps for its skips, in order, and the middle."""
    kept = [unet.conv_in]
    for block in unet.down_blocks:
        kept += getattr(block, "attentions", block.resnets)
        kept += block.downsamplers or []
    return [*kept, unet.mid_block]


def hooked(unet: UNet2DConditionModel, inputs: UNetInputs, change: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Return the output of diffusers' forward pass with ``change(i, h)`` in place of the output h of layer i."""

    def hook(number: int) -> Callable[..., Any]:
        def run(_module: object, _arguments: object, output: Any) -> Any:
            return (change(number, output[0]),) if isinstance(output, tuple) else change(number, output)

        return run

    handles = [layer.register_forward_hook(hook(number)) for number, layer in enumerate(layers(unet))]
    try:
        return plain(unet, inputs)
    finally:
        for handle in handles:
            handle.remove()


def plain(unet: UNet2DConditionModel, inputs: UNetInputs, **arguments: Any) -> Tensor:
    """Return the output of diffusers' forward pass."""
    return unet(
        inputs.noisy,
        inputs.time,
        inputs.tokens,
        class_labels=inputs.content,
        encoder_attention_mask=inputs.mask,
        **arguments,
    ).sample


def make_inputs(unet: UNet2DConditionModel, size: int, masked: bool, scale: float) -> UNetInputs:
    """Return random inputs for three pictures, with features of standard deviation ``scale``."""
    random = torch.Generator().manual_seed(1)
    noisy, content = torch.randn(3, 4, size, size, generator=random), torch.randn(3, 20, generator=random)
    tokens, mask = torch.randn(3, 5, 16, generator=random), torch.arange(5) < torch.tensor([[5], [3], [1]])
    inputs = UNetInputs(noisy, torch.tensor([3, 500, 999]), content, tokens, mask if masked else None, [])
    shapes: dict[int, torch.Size] = {}
    hooked(unet, inputs, lambda number, hidden: shapes.setdefault(number, hidden.shape) and hidden)
    assert len(shapes) == OUTPUTS
    features = [scale * torch.randn(shapes[number], generator=random) for number in range(OUTPUTS)]
    return replace(inputs, features=features)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [8, 6])  # 6: halved to 3 and 2
def test_features_inside_are_added_to_what_each_layer_hands_on(unet, size, masked):
    inputs = make_inputs(unet, size, masked, scale=1.0)
    expected = hooked(unet, inputs, lambda number, hidden: hidden + inputs.features[number])
    assert torch.equal(predict_inside(unet, inputs), expected)
    assert not torch.allclose(expected, predict_skips(unet, inputs), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_features_on_skips_are_diffusers_additional_residuals(unet, masked):
    inputs = make_inputs(unet, 8, masked, scale=1.0)
    *down, middle = inputs.features
    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    assert torch.equal(predict_skips(unet, inputs), plain(unet, inputs, **residuals))


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_features_of_zero_disturb_nothing(unet, masked):
    inputs = make_inputs(unet, 8, masked, scale=0.0)
    expected = plain(unet, inputs)
    assert torch.equal(predict_inside(unet, inputs), expected)
    assert torch.equal(predict_skips(unet, inputs), expected)
    if masked:
        assert not torch.allclose(expected, plain(unet, replace(inputs, mask=None)), atol=1e-4)
