import torch

from mmldm_scale.diffusion.normalise import normalise, restore


def test_normalised_channels_have_mean_zero_and_variance_one_and_come_back():
    latents = (
        torch.randn(500, 2, 3, 4) * torch.tensor([2.0, 0.1])[:, None, None] + torch.tensor([5.0, -1.0])[:, None, None]
    )
    statistics = {
        "mean": latents.mean(dim=(0, 2, 3)).tolist(),
        "std": latents.std(dim=(0, 2, 3), correction=0).tolist(),
    }
    seen = normalise(latents, statistics)
    torch.testing.assert_close(seen.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.var(dim=(0, 2, 3)), torch.ones(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(restore(seen, statistics), latents)


def test_a_dead_channel_stays_finite():
    assert normalise(torch.zeros(1, 1, 2, 2), {"mean": [0.0], "std": [0.0]}).isfinite().all()
