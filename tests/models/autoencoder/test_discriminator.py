from dataclasses import replace

import pytest
import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DiscriminatorConfig
from mmldm_scale.models.autoencoder.discriminator import AudioVideoDiscriminator
from tests.support.tiny_models.tiny_autoencoder import opened

TINY = DiscriminatorConfig(width=8, multipliers=[1, 2, 2], attention=2, heads=2)


def build(config: DiscriminatorConfig = TINY) -> AudioVideoDiscriminator:
    torch.manual_seed(0)
    return opened(AudioVideoDiscriminator(config))


def triples(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_a_triples_logit_is_its_own():
    model, pictures = build(), triples(4)
    together = model(pictures)
    assert together.shape == (4,)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, torch.cat([model(pictures[:1]), model(pictures[1:])]))
    assert together.std() > 1e-3


@pytest.mark.parametrize("order", [[0, 2, 1], [1, 0, 2], [2, 1, 0]])
def test_knows_which_picture_is_which(order):
    model, pictures = build(), triples(4)
    difference = model(pictures[:, order]) - model(pictures)
    assert difference.abs().min() > 1e-4


def crosses(model: AudioVideoDiscriminator) -> bool:
    """Whether the audio image reaches the second frame's features."""
    pictures, seen = triples(1).requires_grad_(), []
    model.norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    model(pictures)
    seen[0][2].sum().backward()
    return bool(pictures.grad[0, 0].any())


def test_pictures_meet_along_the_sequence_and_in_attention():
    """Both begin at zero; each alone carries one picture's content to another two places on."""
    for part in ("convolution", "attention.out"):
        model = build()
        for name, parameter in model.named_parameters():
            if ("convolution" in name or "attention.out" in name) and part not in name:
                torch.nn.init.zeros_(parameter)
        assert crosses(model), part
    assert not crosses(AudioVideoDiscriminator(TINY))
    assert [level.attention is not None for level in build(replace(TINY, attention=1)).levels] == [False, False, True]


def test_learns_which_order_is_the_swapped_one():
    """Frames that grow brighter are real, the same two in the other order are not (Eq. 2's last fake)."""
    torch.manual_seed(0)
    model = AudioVideoDiscriminator(TINY)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    random = torch.Generator().manual_seed(2)

    def real(count: int) -> torch.Tensor:
        levels = torch.rand(count, 3, generator=random).sort(dim=1).values * 2 - 1
        return levels[..., None, None, None].expand(-1, -1, 3, 16, 16)

    for _ in range(60):
        pictures = real(16)
        loss = torch.nn.functional.softplus(-model(pictures)) + torch.nn.functional.softplus(
            model(pictures[:, [0, 2, 1]])
        )
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    fresh = real(64)
    right = (model(fresh) > 0).float().mean() + (model(fresh[:, [0, 2, 1]]) < 0).float().mean()
    assert right / 2 > 0.9


def test_low_precision_agrees():
    model, pictures = build(), triples(2)
    full = model(pictures)
    low = model.bfloat16()(pictures)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, full, rtol=0.05, atol=0.05)


def test_default_is_built_for_256():
    """The default's seven levels: 4 × 4 places are left of 256 × 256."""
    with torch.device("meta"):
        model = AudioVideoDiscriminator(DiscriminatorConfig())
        shapes = []
        model.norm.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape))
        assert model(torch.empty(2, 3, 3, 256, 256)).shape == (2,)
    assert shapes == [(6, 192, 4, 4)]


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="discriminator.heads"):
        DiscriminatorConfig(width=8, multipliers=[1, 2], attention=1, heads=3)
