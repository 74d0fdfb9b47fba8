import pytest
import torch
from torch import Tensor, nn

from mmldm_scale.config import PatchDiscriminatorConfig
from mmldm_scale.models.autoencoder.patch_discriminator import PatchDiscriminator, smallest


def build(width: int = 8, layers: int = 3) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(PatchDiscriminatorConfig(width=width, layers=layers))


def pictures(count: int, size: int, each: int = 1) -> Tensor:
    return torch.rand(count, each, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("layers", "patch"), [(3, 70), (2, 34), (1, 16)])
def test_a_verdict_sees_a_patch(layers, patch):
    """The gradient of one verdict in the middle covers the patch that the configuration names, and no more."""
    network = build(layers=layers)
    for i, layer in enumerate(network.layers):
        if isinstance(layer, nn.GroupNorm):  # whose statistics are the whole picture's
            network.layers[i] = nn.Identity()
    x = pictures(1, 160).requires_grad_()
    verdicts = network(x)[0]
    side = round(len(verdicts) ** 0.5)
    verdicts[len(verdicts) // 2 + side // 2].backward()
    seen = x.grad[0, 0].abs().sum(dim=0) > 0
    assert int(seen.any(dim=0).sum()) == int(seen.any(dim=1).sum()) == patch


def test_a_verdict_hangs_on_its_own_sample_alone():
    network, x = build(), pictures(4, 32)
    together, apart = network(x), torch.cat([network(x[:1]), network(x[1:])])
    torch.testing.assert_close(together, apart)
    assert not torch.allclose(together[0], together[1])


def test_verdicts_of_each_of_a_samples_pictures():
    network, x = build(), pictures(2, 64, each=3)
    assert network(x).shape == (2, 3 * 6 * 6)
    torch.testing.assert_close(network(x), torch.cat([network(x[:, [i]]) for i in range(3)], dim=1))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_pictures_give_one_verdict(layers):
    config = PatchDiscriminatorConfig(width=4, layers=layers)
    network, size = PatchDiscriminator(config), smallest(config)
    assert network(pictures(2, size)).shape == (2, 1)
    with pytest.raises(RuntimeError):
        network(pictures(2, size - 1))


def test_at_the_papers_size_it_is_as_large_as_the_original():
    """Isola et al.'s three strided layers of width 64: 2.77 M parameters, 30 × 30 verdicts on 256 × 256."""
    with torch.device("meta"):
        network = PatchDiscriminator(PatchDiscriminatorConfig())
        verdicts = network(torch.empty(1, 1, 3, 256, 256))
    assert verdicts.shape == (1, 30 * 30)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(2.77e6, rel=0.01)


def test_learns_to_tell_noise_from_smooth_pictures():
    network = build(layers=2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    noise = pictures(8, 32)
    smooth = nn.functional.avg_pool2d(noise.flatten(0, 1), 5, 1, 2).unflatten(0, (8, 1)) * 2
    for _ in range(40):
        loss = nn.functional.softplus(-network(smooth)).mean() + nn.functional.softplus(network(noise)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2
