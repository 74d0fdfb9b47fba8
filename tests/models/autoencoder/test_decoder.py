import dataclasses

import torch

from mmldm_scale.config import DiffusionConfig
from mmldm_scale.diffusion.schedule import scheduler
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.decoder import Condition
from mmldm_scale.models.autoencoder.model import Autoencoder
from tests.models.autoencoder import tiny


def conditions(model, seed: int) -> tuple[Condition, Condition]:
    random = torch.Generator().manual_seed(seed)
    latents = [torch.randn(2, *shape, generator=random) for shape in (model.audio_shape, model.video_shape)]
    return model.conditions(*latents, torch.tensor([[0, 2], [1, 3]]), model.semantics(*latents))


@torch.no_grad()
def test_at_first_the_bare_unet_is_undisturbed():
    """Features and content are silent before training: only the cross-attention of a fresh decoder is at work."""
    model = tiny.build()
    noisy, time = torch.randn(4, *model.noise_shape), torch.tensor([0, 10, 500, 999])
    for _, condition in (conditions(model, 0), conditions(model, 1)):
        bare = model.decoder.unets["shared"](
            noisy, time, encoder_hidden_states=condition.tokens, class_labels=torch.zeros_like(condition.content)
        ).sample
        assert torch.equal(model.decoder(noisy, time, condition), bare)
    tiny.opened(model)
    assert not torch.allclose(model.decoder(noisy, time, conditions(model, 0)[1]), bare)


@torch.no_grad()
def test_a_picture_is_told_of_its_own_clip_and_frame():
    model = tiny.opened(tiny.build())
    latents = torch.randn(2, *model.audio_shape), torch.randn(2, *model.video_shape)
    together = model.conditions(*latents, torch.tensor([[0, 2], [1, 3]]), model.semantics(*latents))[1]
    for row, (clip, frame) in enumerate([(0, 0), (0, 2), (1, 1), (1, 3)]):
        one = [x[clip : clip + 1] for x in latents]
        alone = model.conditions(*one, torch.tensor([[frame]]), model.semantics(*one))[1]
        torch.testing.assert_close(together.content[row], alone.content[0])
        torch.testing.assert_close(together.tokens[row], alone.tokens[0])
        for a, b in zip(together.features, alone.features, strict=True):
            torch.testing.assert_close(a[row], b[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_frames_of_a_clip_have_features_of_their_own():
    model = tiny.opened(tiny.build())
    features = conditions(model, 0)[1].features
    assert all(not torch.allclose(level[0], level[1]) for level in features)


@torch.no_grad()
def test_the_guess_from_an_estimate_is_the_posterior_mean():
    """With the U-Net silenced, the prediction is E[n | z^t]: found here by regression on samples."""
    config = dataclasses.replace(tiny.CONFIG, decoder=dataclasses.replace(tiny.CONFIG.decoder, estimate=True))
    model = Autoencoder(config, tiny.MEDIA, kl_vae.build(tiny.KL_VAE)).eval()
    condition = dataclasses.replace(conditions(model, 0)[1], estimate=torch.randn(4, *model.noise_shape))
    for parameter in model.decoder.unets["shared"].conv_out.parameters():
        parameter.zero_()
    for time in (50, 400, 900):
        kept = scheduler(DiffusionConfig()).alphas_cumprod[time]
        error, noise = 0.5 * torch.randn(100, 4, *model.noise_shape), torch.randn(100, 4, *model.noise_shape)
        noisy = kept.sqrt() * (condition.estimate + error) + (1 - kept).sqrt() * noise
        remainder = noisy - kept.sqrt() * condition.estimate
        slope = (remainder * noise).mean() / remainder.square().mean()
        found = model.decoder(noisy[0], torch.full((4,), time), condition)
        torch.testing.assert_close(found, slope * remainder[0], rtol=0.02, atol=0.02)
