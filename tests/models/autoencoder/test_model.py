import json

import pytest
import torch

from mmldm_scale.config import AutoencoderConfig, DecodingConfig, KLVAEConfig, MediaConfig
from mmldm_scale.errors import UserError
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.model import Autoencoder
from tests.models.autoencoder import tiny


def noises(model: Autoencoder, count: int, seed: int = 1) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = (count, *model.noise_shape), (count, tiny.MEDIA.frames, *model.noise_shape)
    return [torch.randn(shape, generator=random) for shape in shapes]


def test_papers_shapes_and_sizes():
    with torch.device("meta"):
        model = Autoencoder(AutoencoderConfig(), MediaConfig(), kl_vae.build(KLVAEConfig()))
        posteriors = model.encode(torch.empty(1, 16, 3, 256, 256), torch.empty(1, 3, 256, 256))
        means = posteriors.audio.mean, posteriors.video.mean
        conditions = model.conditions(*means, torch.zeros(1, 2, dtype=torch.long), model.semantics(*means))
        times = torch.zeros(2, dtype=torch.long)
        predicted = [
            model.decoder(torch.empty(n, 4, 32, 32), times[:n], c) for n, c in zip((1, 2), conditions, strict=True)
        ]
    assert posteriors.audio.mean.shape[1:] == posteriors.audio.logvar.shape[1:] == model.audio_shape == (16, 8, 8)
    assert posteriors.video.mean.shape[1:] == posteriors.video.logvar.shape[1:] == model.video_shape == (16, 16, 16)
    assert [p.shape for p in predicted] == [(1, 4, 32, 32), (2, 4, 32, 32)]
    assert [c.tokens.shape for c in conditions] == [(1, 258, 768), (2, 66, 768)]
    millions = {name: sum(p.numel() for p in part.parameters()) // 10**6 for name, part in model.named_children()}
    assert millions["kl_vae"] == 83  # Stable Diffusion's
    # Stable Diffusion 1.5's U-Net has 859.5 M; ours adds the embedding of content and frame.
    assert sum(p.numel() for p in model.decoder.unets["shared"].parameters()) // 10**6 == 861


def test_small_shapes():
    model = tiny.build()
    assert (model.audio_shape, model.video_shape, model.noise_shape) == ((4, 2, 2), (4, 4, 4), (4, 8, 8))
    posteriors = model.encode(*tiny.clips(2))
    assert posteriors.audio.mean.shape == (2, 4, 2, 2)
    assert posteriors.video.mean.shape == (2, 4, 4, 4)
    frames, audio = model.decode(
        posteriors.audio.mean, posteriors.video.mean, *noises(model, 2), DecodingConfig(steps=2)
    )
    assert frames.shape == (2, 4, 3, 32, 32)
    assert audio.shape == (2, 3, 32, 32)
    assert frames.dtype == audio.dtype == torch.float32
    assert max(frames.abs().max(), audio.abs().max()) <= 1


def test_encoding_and_decoding_depend_on_their_arguments_alone():
    """The same twice, and each clip the same as if it were alone."""
    model = tiny.opened(tiny.build())
    frames, audio = tiny.clips(3)

    def whole(which: slice) -> list[torch.Tensor]:
        posteriors = model.encode(frames[which], audio[which])
        noise = [part[which] for part in noises(model, 3)]
        restored = model.decode(posteriors.audio.mean, posteriors.video.mean, *noise, DecodingConfig(steps=4))
        return [posteriors.audio.mean, posteriors.video.mean, posteriors.video.logvar, *restored]

    together = whole(slice(0, 3))
    assert all(torch.equal(a, b) for a, b in zip(together, whole(slice(0, 3)), strict=True))
    for a, b in zip(together, whole(slice(1, 2)), strict=True):
        torch.testing.assert_close(a[1:2], b, rtol=1e-4, atol=1e-4)


def test_every_input_reaches_the_output_once_trained():
    model = tiny.opened(tiny.build())
    latents = torch.randn(1, *model.audio_shape), torch.randn(1, *model.video_shape)
    noise = noises(model, 1)
    reference = model.decode(*latents, *noise, DecodingConfig(steps=2))

    def changed(*arguments: torch.Tensor) -> list[bool]:
        found = model.decode(*arguments, DecodingConfig(steps=2))
        return [not torch.allclose(a, b, atol=1e-4) for a, b in zip(found, reference, strict=True)]

    assert changed(-latents[0], latents[1], *noise) == [True, True]  # audio tokens reach the frames
    assert changed(latents[0], -latents[1], *noise) == [True, True]  # video tokens reach the audio image
    assert changed(*latents, -noise[0], noise[1]) == [False, True]
    assert changed(*latents, noise[0], -noise[1]) == [True, False]
    same = noise[1][:, :1].expand_as(noise[1])
    frames = model.decode(*latents, noise[0], same, DecodingConfig(steps=2))[0][0]
    assert not torch.allclose(frames[0], frames[1], atol=1e-4)  # the frame index does


def test_posteriors_see_every_frame():
    model = tiny.opened(tiny.build())
    frames, audio = tiny.clips(1)
    reference = model.encode(frames, audio).video.mean
    for number in range(tiny.MEDIA.frames):
        other = frames.clone()
        other[:, number] *= -1
        assert not torch.allclose(model.encode(other, audio).video.mean, reference, atol=1e-5)


def test_only_the_kl_vae_is_frozen():
    model = tiny.opened(tiny.build()).train()
    assert not model.kl_vae.training
    latents = model.picture_latents(torch.randn(5, 3, 32, 32))
    posteriors = model.posteriors(latents[None, :4], latents[4:])
    targets = torch.tensor([[0, 3]])
    means = posteriors.audio.mean, posteriors.video.mean
    conditions = model.conditions(*means, targets, model.semantics(*means))
    noisy, time = torch.randn(2, *model.noise_shape), torch.full((2,), 500)
    predicted = [model.decoder(noisy[:n], time[:n], c).sum() for n, c in zip((1, 2), conditions, strict=True)]
    sum(predicted).backward()
    heads = ("audio_encoder.head", "video_encoder.head", "audio_projector.stem", "decoder.pyramids.video.spread")
    assert all(p.grad is None and not p.requires_grad for p in model.kl_vae.parameters())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith("kl_vae."))
        if name.startswith(heads) and name.endswith("weight"):
            assert parameter.grad.any()


def test_round_trip(tmp_path):
    model = tiny.opened(tiny.build())
    weights = tmp_path / "run" / "checkpoints" / "step-000000000128" / "weights"
    model.save_pretrained(weights)
    for path in (weights, weights.parent, tmp_path / "run"):
        loaded = Autoencoder.from_pretrained(path)
        assert not loaded.training
        assert (loaded.config, loaded.media) == (tiny.CONFIG, tiny.MEDIA)
        assert loaded.kl_vae.config.scaling_factor == model.kl_vae.config.scaling_factor
        for a, b in zip(model.encode(*tiny.clips(1)).video.mean, loaded.encode(*tiny.clips(1)).video.mean, strict=True):
            assert torch.equal(a, b)


def refusal(path) -> str:
    with pytest.raises(UserError) as error:
        Autoencoder.from_pretrained(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_refusals(tmp_path):
    assert "no such folder" in refusal(tmp_path / "nowhere")
    kl_vae.save(tmp_path / "kl_vae", kl_vae.build(tiny.KL_VAE))
    assert "'kl_vae'" in refusal(tmp_path / "kl_vae")
    tiny.build().save_pretrained(tmp_path / "whole")
    described = tmp_path / "whole" / pretrained.CONFIG
    text = json.loads(described.read_text())
    for damage in (
        {"model": {"width": 3}},
        {"model": {**text["model"], "semantic_width": 32}},
        {"kl_vae": {}},
        {"media": 7},
    ):
        described.write_text(json.dumps(text | damage))
        assert str(tmp_path / "whole") in refusal(tmp_path / "whole")


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="audio_encoder"):
        Autoencoder(tiny.CONFIG, MediaConfig(size=36, audio=tiny.AUDIO), kl_vae.build(tiny.KL_VAE))
    with pytest.raises(UserError, match="KL-VAE"):
        Autoencoder(tiny.CONFIG, MediaConfig(size=30, audio=tiny.AUDIO), kl_vae.build(tiny.KL_VAE))
