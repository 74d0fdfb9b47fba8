import dataclasses

import pytest
import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.models.autoencoder.blocks import fold
from mmldm_scale.models.autoencoder.encoders import INITIAL_LOGVAR
from tests.support.tiny_models import tiny_autoencoder


def video(key_frames: list[int]) -> dict[str, object]:
    return {"video_encoder": dataclasses.replace(tiny_autoencoder.CONFIG.video_encoder, key_frames=key_frames)}


def noise_latents(model) -> torch.Tensor:
    return torch.randn(1, tiny_autoencoder.MEDIA.frames, *model.noise_shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def changed(model, frame: int) -> bool:
    """Return whether the video posterior depends on ``frame``."""
    clip = noise_latents(model)
    altered = clip.clone()
    altered[:, frame] *= -1
    return not torch.allclose(model.video_encoder(clip), model.video_encoder(altered), atol=1e-5)


def test_every_frame_is_seen_or_the_key_frames_alone():
    everything, few = (
        tiny_autoencoder.opened(tiny_autoencoder.build()),
        tiny_autoencoder.opened(tiny_autoencoder.build(**video([0, 2]))),
    )
    assert [changed(everything, frame) for frame in range(4)] == [True] * 4
    assert [changed(few, frame) for frame in range(4)] == [True, False, True, False]
    short = tiny_autoencoder.opened(tiny_autoencoder.build(shortcut=True, **video([1])))
    assert [changed(short, frame) for frame in range(4)] == [False, True, False, False]


@torch.no_grad()
def test_frames_have_their_places():
    for model in (
        tiny_autoencoder.opened(tiny_autoencoder.build()),
        tiny_autoencoder.opened(tiny_autoencoder.build(**video([0, 1, 2, 3]))),
    ):
        clip = noise_latents(model)
        assert not torch.allclose(model.video_encoder(clip), model.video_encoder(clip.flip(1)), atol=1e-5)


def test_key_frames_come_with_a_learned_frame():
    model = tiny_autoencoder.opened(tiny_autoencoder.build(**video([0, 3])))
    model.video_encoder(noise_latents(model)).square().sum().backward()
    assert model.video_encoder.content_frame.grad.any()
    assert "video_encoder.content_frame" not in tiny_autoencoder.build().state_dict()


def test_a_frame_that_no_clip_has_is_refused():
    with pytest.raises(UserError, match=r"key_frames: must lie in 0\.\.3, a clip's frames, not \[0, 4\]"):
        tiny_autoencoder.build(**video([0, 4]))


@torch.no_grad()
@pytest.mark.parametrize("shortcut", [False, True])
def test_the_shortcut_adds_the_folded_latents_to_the_mean(shortcut):
    model = tiny_autoencoder.build(shortcut=shortcut)
    for encoder in (model.audio_encoder, model.video_encoder):
        torch.nn.init.zeros_(encoder.head.weight)
        torch.nn.init.zeros_(encoder.head.bias[:4])
    clip = noise_latents(model)
    posteriors = model.posteriors(clip, clip[:, 0])
    assert torch.equal(posteriors.audio.mean, fold(clip[:, :1], 4, 4) * shortcut)
    assert torch.equal(posteriors.video.mean, fold(clip, 2, 4) * shortcut)
    assert (posteriors.video.logvar == INITIAL_LOGVAR).all()
