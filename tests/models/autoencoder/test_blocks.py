import pytest
import torch

from mmldm_scale.models.autoencoder.blocks import fold, norm_groups, unfold


def test_a_folded_clip_unfolds_to_its_mean_picture():
    clips = torch.randn(2, 5, 4, 8, 8)
    folded = fold(clips, 2, 16)
    assert folded.shape == (2, 16, 4, 4)
    torch.testing.assert_close(unfold(folded, 2, 4), clips.mean(dim=1))


@pytest.mark.parametrize(("factor", "channels"), [(4, 16), (2, 4), (1, 16), (4, 7)])
def test_folding_keeps_a_plain_picture_whatever_the_sizes(factor, channels):
    picture = torch.full((1, 1, 4, 8, 8), 0.3)
    folded = fold(picture, factor, channels)
    assert folded.shape == (1, channels, 8 // factor, 8 // factor)
    torch.testing.assert_close(unfold(folded, factor, 4), picture[:, 0])


def test_folding_keeps_places():
    picture = torch.zeros(1, 1, 4, 8, 8)
    picture[..., 5, 2] = 1.0
    found = unfold(fold(picture, 4, 16), 4, 4)[0, 0]  # four channels become one: the average of a row of four
    assert found.nonzero()[:, 0].unique().tolist() == [5]
    assert found[5, 2] > 0
    assert not found[:, 4:].any()


@pytest.mark.parametrize(("channels", "groups"), [(320, 32), (128, 32), (64, 16), (48, 8), (16, 4), (4, 1), (3, 1)])
def test_groups_of_a_norm(channels, groups):
    assert norm_groups(channels) == groups
