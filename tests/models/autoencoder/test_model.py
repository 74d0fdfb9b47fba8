import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import AutoencoderConfig, DecodingConfig, KLVAEConfig, MediaConfig
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.model import Autoencoder
from tests.support.tiny_models import tiny_autoencoder

CLASSES = ["rain", "wind", "fire"]


SKIPS = dataclasses.replace(tiny_autoencoder.CONFIG.decoder, features="skips")


def noises(model: Autoencoder, count: int, seed: int = 1) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = (count, *model.noise_shape), (count, tiny_autoencoder.MEDIA.frames, *model.noise_shape)
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


def test_published_weights_have_a_place_for_each_of_theirs():
    """KL-VAE and U-Net are Stable Diffusion 1.5's, but for the embedding of content and frame."""
    with torch.device("meta"):
        model = Autoencoder(AutoencoderConfig(), MediaConfig(), kl_vae.build(KLVAEConfig()))
        published = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    assert sum(p.numel() for p in model.kl_vae.parameters()) == 83_653_863
    assert sum(p.numel() for p in published.parameters()) == 859_520_964
    ours = {name: p.shape for name, p in model.decoder.unets["shared"].named_parameters()}
    theirs = {name: p.shape for name, p in published.named_parameters()}
    assert {name: shape for name, shape in ours.items() if not name.startswith("class_embedding.")} == theirs


def test_small_shapes():
    model = tiny_autoencoder.build()
    assert (model.audio_shape, model.video_shape, model.noise_shape) == ((4, 2, 2), (4, 4, 4), (4, 8, 8))
    posteriors = model.encode(*tiny_autoencoder.clips(2))
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
    model = tiny_autoencoder.opened(tiny_autoencoder.build())
    frames, audio = tiny_autoencoder.clips(3)

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
    model = tiny_autoencoder.opened(tiny_autoencoder.build())
    latents = torch.randn(1, *model.audio_shape), torch.randn(1, *model.video_shape)
    noise = noises(model, 1)
    reference = model.decode(*latents, *noise, DecodingConfig(steps=2))

    def changed(*arguments: torch.Tensor) -> list[bool]:
        outputs = model.decode(*arguments, DecodingConfig(steps=2))
        return [not torch.allclose(a, b, atol=1e-4) for a, b in zip(outputs, reference, strict=True)]

    assert changed(-latents[0], latents[1], *noise) == [True, True]  # audio tokens reach the frames
    assert changed(latents[0], -latents[1], *noise) == [True, True]  # video tokens reach the audio image
    assert changed(*latents, -noise[0], noise[1]) == [False, True]
    assert changed(*latents, noise[0], -noise[1]) == [True, False]
    same = noise[1][:, :1].expand_as(noise[1])
    frames = model.decode(*latents, noise[0], same, DecodingConfig(steps=2))[0][0]
    assert not torch.allclose(frames[0], frames[1], atol=1e-4)  # the frame index does


@pytest.mark.parametrize("options", [{"audio_guidance": 2.0}, {"video_guidance": 3.0}])
def test_guidance_is_each_modalitys_own(options):
    """It leads away from what the decoder draws without the condition, whether or not that has semantics."""
    for shared, semantics in ((True, True), (False, True), (True, False)):
        architecture = {"shared_decoder": shared, "semantics": semantics}
        model = tiny_autoencoder.opened(tiny_autoencoder.build(classes=CLASSES, **architecture))
        inputs = *tiny_autoencoder.latents(model), *noises(model, 2)
        frames, audio = model.decode(*inputs, DecodingConfig(steps=2))
        guided = model.decode(*inputs, DecodingConfig(steps=2, **options))
        assert torch.allclose(guided[0], frames, atol=1e-4) == ("audio_guidance" in options)
        assert torch.allclose(guided[1], audio, atol=1e-4) == ("video_guidance" in options)


def test_an_unknown_class_is_predicted():
    model = tiny_autoencoder.opened(tiny_autoencoder.build(classes=CLASSES))
    torch.nn.init.constant_(model.classification_head.out.bias[1], 100.0)
    inputs = *tiny_autoencoder.latents(model), *noises(model, 2), DecodingConfig(steps=2)
    predicted = model.decode(*inputs)
    for label in (-1, 0, 1):
        outputs = model.decode(*inputs, labels=torch.full((2,), label))
        assert [torch.equal(a, b) for a, b in zip(outputs, predicted, strict=True)] == [label == 1] * 2


@pytest.mark.parametrize("options", [{}, {"shared_decoder": False}])
def test_pictures_are_the_same_a_few_at_a_time(options):
    model = tiny_autoencoder.opened(tiny_autoencoder.build(classes=CLASSES, **options))
    inputs = *tiny_autoencoder.latents(model), *noises(model, 2)
    for guidance in (1.0, 3.0):
        whole, few = (model.decode(*inputs, DecodingConfig("ddim", 2, 1.0, guidance, pictures)) for pictures in (0, 3))
        for a, b in zip(whole, few, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_only_the_kl_vae_is_frozen():
    model = tiny_autoencoder.opened(tiny_autoencoder.build()).train()
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


def gradients(model: Autoencoder) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Return the gradients of a loss of everything, and how many numbers each part kept for them."""
    clips = torch.randn(2, 5, *model.noise_shape, generator=torch.Generator().manual_seed(0))
    kept = {}

    def run(part: str, function: Callable, *inputs: Any) -> Any:
        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[part] = kept.get(part, 0) + tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            return function(*inputs)

    audio = run("audio_encoder", model.audio_encoder, clips[:, 4])[:, :4]
    video = run("video_encoder", model.video_encoder, clips[:, :4])[:, :4]
    semantics = model.semantics(audio, video)
    frames = torch.tensor([[0], [3]])
    both = run("decoder.pyramids", model.conditions, audio, video, frames, semantics, torch.tensor([0, -1]))
    times = torch.tensor([500, 20])
    predicted = [run("decoder.unets", model.decoder, clips[:, i], times, condition) for i, condition in enumerate(both)]
    pictures = run("kl_vae", model.picture, torch.cat(predicted))
    loss = pictures.square().mean() + model.classify(semantics).square().mean()
    (through,) = torch.autograd.grad(loss, audio, retain_graph=True)  # as for a term's own gradient norm
    loss.backward()
    outputs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"through": through, **outputs}, kept


@pytest.mark.parametrize("options", [{}, {"shared_decoder": False}, {"decoder": SKIPS}])
def test_recomputed_activations_give_the_same_gradients_and_are_not_kept(options):
    (plain, much), (sparing, little) = (
        gradients(
            tiny_autoencoder.opened(
                tiny_autoencoder.build(classes=CLASSES, activation_checkpointing=on, **options)
            ).train()
        )
        for on in (False, True)
    )
    assert plain.keys() == sparing.keys()
    assert all(any(name.startswith(part) for name in plain) for part in much if part != "kl_vae")
    for name, gradient in plain.items():
        torch.testing.assert_close(sparing[name], gradient, rtol=1e-4, atol=1e-6)
    for part, numbers in little.items():
        assert numbers < 0.7 * much[part], part


def test_pictures_pass_gradients_everywhere():
    model = tiny_autoencoder.build()
    latents = (3 * torch.randn(2, *model.noise_shape)).requires_grad_()
    pictures = model.picture(latents)
    assert pictures.shape == (2, 3, 32, 32)
    torch.testing.assert_close(pictures.clamp(-1, 1), kl_vae.decode(model.kl_vae, latents))
    (10 * pictures).square().sum().backward()
    assert latents.grad.all()
    torch.nn.init.constant_(model.kl_vae.decoder.conv_out.bias, 2.0)
    assert model.picture(latents).max() > 1


def test_round_trip(tmp_path):
    model = tiny_autoencoder.opened(tiny_autoencoder.build())
    weights = tmp_path / "run" / "checkpoints" / "step-000000000128" / "weights"
    model.save_pretrained(weights)
    for path in (weights, weights.parent, tmp_path / "run"):
        loaded = Autoencoder.from_pretrained(path)
        assert not loaded.training
        assert (loaded.config, loaded.media) == (tiny_autoencoder.CONFIG, tiny_autoencoder.MEDIA)
        assert loaded.kl_vae.config.scaling_factor == model.kl_vae.config.scaling_factor
        state = loaded.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "options", [{"classes": ["rain", "wind"]}, {"shared_decoder": False, "classes": ["a"]}, {"semantics": False}]
)
def test_round_trip_of_options_in_low_precision(tmp_path, options):
    model = tiny_autoencoder.opened(tiny_autoencoder.build(**options))
    model.save_pretrained(tmp_path)
    loaded = Autoencoder.from_pretrained(tmp_path, torch.bfloat16, "cpu")
    assert (loaded.config, loaded.classes) == (model.config, tuple(options.get("classes", ())))
    assert loaded.dtype == torch.bfloat16
    assert loaded.kl_vae.dtype == torch.float32
    inputs = *tiny_autoencoder.latents(model), *noises(model, 2), DecodingConfig(steps=2, video_guidance=1.5)
    for low, full in zip(loaded.decode(*inputs), model.decode(*inputs), strict=True):
        assert low.dtype == torch.float32
        assert (low - full).abs().mean() < 0.05


def test_older_weights_folders_keep_their_meaning(tmp_path):
    """Before model.decoder.features existed, features were added to the skips; the projectors are as stored."""
    model = tiny_autoencoder.opened(tiny_autoencoder.build(decoder=SKIPS, detach_projectors=False))
    inputs = *tiny_autoencoder.latents(model), *noises(model, 2), DecodingConfig(steps=2)
    model.save_pretrained(tmp_path)
    (tmp_path / pretrained.SUMS).unlink(missing_ok=True)
    described = json.loads((tmp_path / pretrained.CONFIG).read_text())
    assert described["model"]["decoder"].pop("features") == "skips"
    (tmp_path / pretrained.CONFIG).write_text(json.dumps(described))
    loaded = Autoencoder.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(loaded.decode(*inputs), model.decode(*inputs), strict=True))
    described["model"]["decoder"]["features"] = "inside"
    (tmp_path / pretrained.CONFIG).write_text(json.dumps(described))
    inside = Autoencoder.from_pretrained(tmp_path).decode(*inputs)
    assert not torch.allclose(inside[0], model.decode(*inputs)[0], atol=1e-4)


def refusal(path) -> str:
    with pytest.raises(UserError) as error:
        Autoencoder.from_pretrained(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_refusals(tmp_path):
    assert "no such folder" in refusal(tmp_path / "nowhere")
    kl_vae.save(tmp_path / "kl_vae", kl_vae.build(tiny_autoencoder.KL_VAE))
    assert "'kl_vae'" in refusal(tmp_path / "kl_vae")
    tiny_autoencoder.build().save_pretrained(tmp_path / "whole")
    described = tmp_path / "whole" / pretrained.CONFIG
    text = json.loads(described.read_text())
    for damage in (
        {"model": {"width": 3}},
        {"model": {**text["model"], "semantic_width": 32}},
        {"kl_vae": {}},
        {"media": 7},
        {"classes": 7},
        {"classes": ["one more"]},
    ):
        described.write_text(json.dumps(text | damage))
        assert str(tmp_path / "whole") in refusal(tmp_path / "whole")


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="audio_encoder"):
        Autoencoder(
            tiny_autoencoder.CONFIG,
            MediaConfig(size=36, audio=tiny_autoencoder.AUDIO),
            kl_vae.build(tiny_autoencoder.KL_VAE),
        )
    with pytest.raises(UserError, match="KL-VAE"):
        Autoencoder(
            tiny_autoencoder.CONFIG,
            MediaConfig(size=30, audio=tiny_autoencoder.AUDIO),
            kl_vae.build(tiny_autoencoder.KL_VAE),
        )


@pytest.mark.parametrize("own", ["audio", "video"])
@torch.no_grad()
def test_one_modality_alone_is_its_part_of_the_joint_model(own):
    """Without semantics the modalities of the joint model do not affect each other."""
    joint = tiny_autoencoder.opened(tiny_autoencoder.build(semantics=False))
    alone = tiny_autoencoder.build(semantics=False, modalities=[own])
    names = alone.state_dict().keys()
    alone.load_state_dict({name: value for name, value in joint.state_dict().items() if name in names})
    assert {name.split(".")[0] for name in names} == {"kl_vae", f"{own}_encoder", "decoder"}
    frames, audio = tiny_autoencoder.clips(2)
    both, one = joint.encode(frames, audio), alone.encode(*(frames, None) if own == "video" else (None, audio))
    assert one.present.keys() == {own}
    torch.testing.assert_close(one.present[own].mean, both.present[own].mean)
    random = torch.Generator().manual_seed(1)
    noise = {
        "audio": torch.randn(2, *joint.noise_shape, generator=random),
        "video": torch.randn(2, 4, *joint.noise_shape, generator=random),
    }
    decoding = DecodingConfig(steps=2, video_guidance=2.0)
    expected = joint.decode(*both.means, *noise.values(), decoding)
    decoded = alone.decode(*one.means, *(noise[name] if name == own else None for name in noise), decoding)
    for part, whole, name in zip(decoded, expected, ("video", "audio"), strict=True):
        if name == own:
            torch.testing.assert_close(part, whole, atol=1e-4, rtol=1e-4)
        else:
            assert part is None
    with pytest.raises(ValueError, match=f"values are needed of {own}, not of audio and video"):
        alone.decode(*both.means, *noise.values(), decoding)


def test_one_modality_alone_predicts_and_reads_classes_of_its_own():
    model = tiny_autoencoder.build(classes=["a", "b"], modalities=["video"])
    names = {name for name, _ in model.named_children()}
    assert names == {"kl_vae", "video_encoder", "video_projector", "classification_head", "decoder"}
    latent = torch.randn(2, *model.video_shape, generator=torch.Generator().manual_seed(0))
    semantics = model.semantics(None, latent)
    assert model.classify(semantics).shape == (2, 2)
    (condition,) = model.conditions(None, latent, torch.zeros(2, 1, dtype=torch.long), semantics, torch.tensor([1, -1]))
    tokens = condition.tokens
    assert tokens.shape == (2, 2, 16)  # the class and the modality; no other modality's semantics
    embeddings = model.decoder.class_embeddings["shared"].weight
    assert torch.equal(tokens[:, 0], embeddings[[1, 2]])  # the last one is of unknown classes
    null = model.decoder.null("video", condition).tokens
    assert torch.equal(null[:, 0], tokens[:, 0])
    assert not null[:, 1].any()
    without = tiny_autoencoder.build(modalities=["video"])  # no class: neither projector nor class embeddings
    assert without.semantics(None, latent) is None
    assert not without.decoder.class_embeddings
