import pytest
import torch
from torch import nn

from mmldm_scale.config import KLVAEConfig
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.sizes import autoencoder_info


@pytest.fixture(scope="module")
def numbers() -> dict[str, float]:
    """The numbers in the tables, by what they are of: millions of parameters, or billions of MACs."""
    lines = [line.rsplit(maxsplit=2) for line in autoencoder_info().splitlines()]
    return {words[0]: float(words[1]) for words in lines if words[2:] in (["M"], ["G"])}


def test_parts_have_the_parameters_of_stable_diffusions_and_of_layers_counted_by_hand(numbers):
    assert numbers["KL-VAE (frozen)"] == 83.7
    content = (16 + 320) * 1280 + 1280 + 1280 * 1280 + 1280  # latent and frame into the time embedding, by two layers
    assert numbers["signal decoder: U-Net"] == pytest.approx(859.520964 + content / 1e6, abs=0.06)
    heads = (2 * 768 * 768 + 768) + (768 * 9 + 9) + (768 * 256 + 1)  # of nine classes; the last has a temperature
    assert numbers["heads"] == pytest.approx(heads / 1e6, abs=0.06)


def test_a_pictures_decoding_is_the_sum_of_its_layers(numbers):
    with torch.device("meta"):
        vae, latent = kl_vae.build(KLVAEConfig()), torch.empty(1, 4, 32, 32)
    macs = []

    def count(layer: nn.Module, _: object, out: torch.Tensor) -> None:
        fan_in = layer.weight[0].numel() if isinstance(layer, nn.Conv2d) else layer.in_features
        macs.append(out.numel() * fan_in)

    for layer in vae.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    kl_vae.render(vae, latent)
    attention = 2 * 1024**2 * 512  # over the 32 × 32 places
    assert numbers["KL-VAE decodes a picture"] == pytest.approx((sum(macs) + attention) / 1e9, abs=0.06)
