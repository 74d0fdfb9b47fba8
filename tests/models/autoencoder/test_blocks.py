import pytest
import torch

from mmldm_scale.models.autoencoder.blocks import fold, norm_groups, unfold


def test_a_folded_clip_unfolds_to_means_over_time_and_space():
    clips = torch.randn(2, 8, 4, 6, 6)
    folded = fold(clips, 2, 16)  # four channels are left to each of four: four stretches of two frames
    assert folded.shape == (2, 16, 3, 3)
    means = clips.unflatten(1, (4, 2)).mean(dim=2).unflatten(4, (3, 2)).unflatten(3, (3, 2)).mean(dim=(4, 6))
    expected = means.repeat_interleave(2, 1).repeat_interleave(2, 3).repeat_interleave(2, 4)
    torch.testing.assert_close(unfold(folded, 2, 4, 8), expected)


def test_nothing_is_lost_where_there_is_room():
    clips = torch.randn(2, 3, 4, 8, 8)
    torch.testing.assert_close(unfold(fold(clips, 2, 48), 2, 4, 3), clips)


@pytest.mark.parametrize(("factor", "channels"), [(4, 16), (2, 4), (1, 16), (4, 7)])
def test_a_plain_clip_stays_plain_whatever_the_sizes(factor, channels):
    clip = torch.full((1, 3, 4, 8, 8), 0.3)
    folded = fold(clip, factor, channels)
    assert folded.shape == (1, channels, 8 // factor, 8 // factor)
    torch.testing.assert_close(unfold(folded, factor, 4, 3), clip)


@pytest.mark.parametrize(("channels", "groups"), [(320, 32), (128, 32), (64, 16), (48, 8), (16, 4), (4, 1), (3, 1)])
def test_groups_of_a_norm(channels, groups):
    assert norm_groups(channels) == groups
