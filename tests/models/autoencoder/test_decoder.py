import dataclasses

import pytest
import torch
from diffusers import UNet2DConditionModel

from mmldm_scale.config import DiffusionConfig, UNetConfig
from mmldm_scale.diffusion.schedule import scheduler
from mmldm_scale.models.autoencoder.decoder import Condition
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.autoencoder.semantic import Semantics
from tests.support.tiny_models import tiny_autoencoder

FRAMES = torch.tensor([[0, 2], [1, 3]])
TIME = torch.tensor([0, 10, 500, 999])
CLASSES = ["rain", "wind", "fire"]
FULL = UNetConfig(width=16, multipliers=[1, 2, 4, 4], blocks=2, attention=[True, True, True, False], heads=8)


def conditions(model: Autoencoder, seed: int = 0, **arguments) -> tuple[Condition, Condition]:
    """Return the conditions of two clips' audio images and of two frames of each."""
    latents = tiny_autoencoder.latents(model, seed=seed)
    return model.conditions(*latents, FRAMES, model.semantics(*latents), **arguments)


def predictions(model: Autoencoder, pair: tuple[Condition, Condition]) -> list[torch.Tensor]:
    """Return the noise predicted in two audio images and in four frames, the same at every call."""
    noisy = torch.randn(4, *model.noise_shape, generator=torch.Generator().manual_seed(7))
    return [model.decoder(noisy[: len(c.content)], TIME[: len(c.content)], c) for c in pair]


def different(first: list[torch.Tensor], second: list[torch.Tensor]) -> list[bool]:
    return [not torch.allclose(a, b, atol=1e-5) for a, b in zip(first, second, strict=True)]


def stable_diffusion(width: int) -> UNet2DConditionModel:
    """Return a U-Net as diffusers builds Stable Diffusion's, but small, with random weights."""
    torch.manual_seed(3)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 64, 64),
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=4,
    ).eval()


@torch.no_grad()
@pytest.mark.parametrize("features", ["inside", "skips"])
@pytest.mark.parametrize("options", [{}, {"shared_decoder": False}, {"semantics": False}, {"pooled_latent": False}])
def test_a_pretrained_unet_is_at_first_undisturbed(options, features):
    """Features, content and frame are silent before training: the same context gives Stable Diffusion's own output."""
    model = tiny_autoencoder.build(decoder=dataclasses.replace(FULL, features=features), **options)
    published = stable_diffusion(tiny_autoencoder.CONFIG.semantic_width)
    for unet in model.decoder.unets.values():
        keys = unet.load_state_dict(published.state_dict(), strict=False)
        assert not keys.unexpected_keys
        assert all(name.startswith("class_embedding.") for name in keys.missing_keys)
    pair, noisy = conditions(model), torch.randn(4, *model.noise_shape)
    for condition in pair:
        count = len(condition.content)
        expected = published(noisy[:count], TIME[:count], encoder_hidden_states=condition.tokens).sample
        assert torch.equal(model.decoder(noisy[:count], TIME[:count], condition), expected)


@torch.no_grad()
def test_all_that_is_silent_at_first_can_speak():
    model = tiny_autoencoder.build()
    silent = {name: p for name, p in model.decoder.named_parameters() if name.endswith("weight") and not p.any()}
    assert len(silent) == 1 + 2 * 5  # content and frame; each output of the U-Net's encoder, and its middle, twice
    before = predictions(model, conditions(model))
    for name, parameter in silent.items():
        torch.nn.init.normal_(parameter, std=0.5)
        predicted = predictions(model, conditions(model))
        assert any(different(predicted, before)), name
        before = predicted


@torch.no_grad()
def test_features_are_added_where_the_configuration_says():
    """Only inside the U-Net's encoder do those of its first level reach its middle."""
    reached = []
    for features in ("inside", "skips"):
        decoder = dataclasses.replace(tiny_autoencoder.CONFIG.decoder, features=features)
        model = tiny_autoencoder.opened(tiny_autoencoder.build(decoder=decoder))
        pair, middles = conditions(model), []
        unet = model.decoder.unets["shared"]
        unet.mid_block.register_forward_hook(lambda _module, given, _output, seen=middles: seen.append(given[0]))
        predictions(model, pair)
        for condition in pair:
            condition.features[0].add_(1.0)
        predictions(model, pair)
        reached.append(different(middles[:2], middles[2:]))
    assert reached == [[True, True], [False, False]]


@torch.no_grad()
def test_a_picture_is_told_of_its_own_clip_and_frame():
    model = tiny_autoencoder.opened(tiny_autoencoder.build(classes=CLASSES))
    labels, dropped = torch.tensor([2, -1]), torch.tensor([[False, True], [False, False]])
    latents = tiny_autoencoder.latents(model)
    together = model.decoder.drop("video", conditions(model, labels=labels)[1], dropped.flatten())
    for row, (clip, place) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        own = [x[clip : clip + 1] for x in latents]
        frame, label = FRAMES[clip, place].view(1, 1), labels[clip : clip + 1]
        alone = model.conditions(*own, frame, model.semantics(*own), label)[1]
        alone = model.decoder.drop("video", alone, dropped[clip, place].view(1))
        torch.testing.assert_close(together.content[row], alone.content[0])
        torch.testing.assert_close(together.tokens[row], alone.tokens[0])
        for a, b in zip(together.features, alone.features, strict=True):
            torch.testing.assert_close(a[row], b[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_frames_of_a_clip_have_features_of_their_own():
    model = tiny_autoencoder.opened(tiny_autoencoder.build())
    features = conditions(model)[1].features
    assert all(not torch.allclose(level[0], level[1]) for level in features)


@torch.no_grad()
def test_each_modality_is_told_the_others_semantics():
    model = tiny_autoencoder.opened(tiny_autoencoder.build())
    latents = tiny_autoencoder.latents(model)
    semantics = model.semantics(*latents)
    pair = model.conditions(*latents, FRAMES, semantics)
    assert torch.equal(pair[0].tokens[:, :16], semantics.video)
    assert torch.equal(pair[1].tokens[:, :4], semantics.audio.repeat_interleave(2, dim=0))
    for name, condition in zip(("audio", "video"), pair, strict=True):
        assert torch.equal(condition.tokens[0, -1], model.decoder.contexts[name].modality[0])
    reference = predictions(model, pair)

    def changed(audio: torch.Tensor, video: torch.Tensor) -> list[bool]:
        pair = model.conditions(*latents, FRAMES, Semantics(audio, video))
        return different(predictions(model, pair), reference)

    assert changed(semantics.audio.flip(0), semantics.video) == [False, True]  # another clip's sound
    assert changed(semantics.audio, semantics.video.flip(0)) == [True, False]
    assert changed(semantics.audio, semantics.video) == [False, False]


@torch.no_grad()
def test_without_semantics_the_modalities_know_nothing_of_each_other():
    model = tiny_autoencoder.opened(tiny_autoencoder.build(semantics=False, classes=CLASSES))
    audio, video = tiny_autoencoder.latents(model)
    reference = predictions(model, model.conditions(audio, video, FRAMES, None))
    assert different(predictions(model, model.conditions(-audio, video, FRAMES, None)), reference) == [True, False]
    assert different(predictions(model, model.conditions(audio, -video, FRAMES, None)), reference) == [False, True]
    pair = model.conditions(audio, video, FRAMES, None, torch.tensor([0, 1]))
    assert different(predictions(model, pair), reference) == [False, False]
    assert [condition.tokens.shape for condition in pair] == [(2, 1, 16), (4, 1, 16)]  # the modality
    assert not torch.allclose(pair[0].tokens[0], pair[1].tokens[0])


@torch.no_grad()
def test_the_class_is_told_and_no_class_is_a_class_of_its_own():
    model = tiny_autoencoder.opened(tiny_autoencoder.build(classes=CLASSES))
    unknown = predictions(model, conditions(model))
    assert different(predictions(model, conditions(model, labels=torch.tensor([-1, -1]))), unknown) == [False, False]
    seen = [unknown]
    for label in range(3):
        predicted = predictions(model, conditions(model, labels=torch.full((2,), label)))
        assert all(different(predicted, earlier) == [True, True] for earlier in seen)
        seen.append(predicted)
    mixed = predictions(model, conditions(model, labels=torch.tensor([1, -1])))
    torch.testing.assert_close(mixed[1][:2], seen[2][1][:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed[1][2:], unknown[1][2:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"semantics": False}, {"shared_decoder": False, "pooled_latent": False}])
def test_dropped_pictures_keep_class_and_frame_alone(options):
    """Other latents change nothing for them, and everything for the others; the null condition drops all."""
    model = tiny_autoencoder.opened(estimating(classes=CLASSES, shortcut=True, **options))
    labels, dropped = torch.tensor([0, 2]), [torch.tensor([True, False]), torch.tensor([False, True, True, False])]
    for number, name in enumerate(("audio", "video")):
        rows = dropped[number]
        first, second = (conditions(model, seed, labels=labels)[number] for seed in (0, 1))
        some, others = (model.decoder.drop(name, condition, rows) for condition in (first, second))
        null = model.decoder.null(name, first)
        for kept, whole, changed, empty in zip(*map(parts, (some, first, others, null)), strict=True):
            assert torch.equal(kept[rows], changed[rows])
            assert torch.equal(kept[rows], empty[rows])
            assert torch.equal(kept[~rows], whole[~rows])
        assert not any(level.any() for level in (*null.features, null.estimate))
        width, pooled = model.config.decoder.width, model.config.latent_channels * model.config.pooled_latent
        assert torch.equal(null.content[:, -width:], first.content[:, -width:])
        assert null.content.shape[1] == width + pooled
        assert not null.content[:, :pooled].any()
        assert not torch.allclose(null.tokens[:, -1], first.tokens[:, -1])
        if model.config.semantics:
            assert torch.equal(null.tokens[:, -2], first.tokens[:, -2])  # the class
            assert not torch.allclose(null.tokens[:, :-2], first.tokens[:, :-2])
            assert torch.equal(null.tokens[:, :-2], null.tokens[:1, :-2].expand_as(null.tokens[:, :-2]))
        else:
            assert not null.tokens.any()


def parts(condition: Condition) -> list[torch.Tensor]:
    return [*condition.features, condition.content, condition.tokens, condition.estimate]


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"semantics": False}])
def test_joined_modalities_are_drawn_as_if_apart(options):
    """They have different numbers of tokens, of which the padding is not seen."""
    model = tiny_autoencoder.opened(tiny_autoencoder.build(**options))
    pair = conditions(model)
    both = Condition.join(pair)
    apart = predictions(model, pair)
    noisy = torch.randn(4, *model.noise_shape, generator=torch.Generator().manual_seed(7))
    together = model.decoder(torch.cat([noisy[:2], noisy]), torch.cat([TIME[:2], TIME]), both)
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-4)
    rows = torch.tensor([5, 0])
    some = model.decoder(torch.stack([noisy[3], noisy[0]]), torch.tensor([TIME[3], TIME[0]]), both.select(rows))
    torch.testing.assert_close(some, together[rows], rtol=1e-4, atol=1e-4)
    again = Condition.join([both, pair[0]])
    assert torch.equal(again.tokens[6:, : pair[0].tokens.shape[1]], pair[0].tokens)


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False])
def test_unets_are_shared_or_apart(shared):
    model = tiny_autoencoder.opened(tiny_autoencoder.build(shared_decoder=shared, classes=CLASSES))
    assert (
        list(model.decoder.unets)
        == list(model.decoder.class_embeddings)
        == (["shared"] if shared else ["audio", "video"])
    )
    pair = conditions(model)
    reference = predictions(model, pair)
    next(iter(model.decoder.unets.values())).conv_out.bias.add_(1.0)
    assert different(predictions(model, pair), reference) == [True, shared]
    next(iter(model.decoder.class_embeddings.values())).weight.add_(1.0)
    changed = conditions(model)
    assert different([c.tokens for c in changed], [c.tokens for c in pair]) == [True, shared]
    if not shared:
        with pytest.raises(ValueError, match="different U-Nets"):
            Condition.join(pair)


@torch.no_grad()
@pytest.mark.parametrize("pooled", [True, False])
def test_the_pooled_latent_may_stay_out_of_the_time_embedding(pooled):
    model = tiny_autoencoder.build(pooled_latent=pooled)
    contents = [[condition.content for condition in conditions(model, seed)] for seed in (0, 1)]
    assert different(*contents) == [pooled, pooled]
    audio, video = tiny_autoencoder.latents(model)
    expected = [model.decoder.frame_embeddings["audio"].weight[[0, 0]], model.decoder.frame_embeddings["video"].weight]
    expected[1] = expected[1][FRAMES.flatten()]
    if pooled:
        means = audio.flatten(2).mean(2), video.flatten(2).mean(2).repeat_interleave(2, 0)
        expected = [torch.cat(pair, dim=1) for pair in zip(means, expected, strict=True)]
    torch.testing.assert_close(contents[0], expected)


def estimating(**options) -> Autoencoder:
    return tiny_autoencoder.build(
        decoder=dataclasses.replace(tiny_autoencoder.CONFIG.decoder, estimate=True), **options
    )


@torch.no_grad()
def test_the_guess_from_an_estimate_is_the_posterior_mean():
    """With the U-Net silenced, the prediction is E[n | z^t]: found here by regression on samples."""
    model = estimating()
    condition = dataclasses.replace(conditions(model)[1], estimate=torch.randn(4, *model.noise_shape))
    for parameter in model.decoder.unets["shared"].conv_out.parameters():
        parameter.zero_()
    for time in (50, 400, 900):
        alpha_bar = scheduler(DiffusionConfig()).alphas_cumprod[time]
        error, noise = 0.5 * torch.randn(100, 4, *model.noise_shape), torch.randn(100, 4, *model.noise_shape)
        noisy = alpha_bar.sqrt() * (condition.estimate + error) + (1 - alpha_bar).sqrt() * noise
        remainder = noisy - alpha_bar.sqrt() * condition.estimate
        slope = (remainder * noise).mean() / remainder.square().mean()
        predicted = model.decoder(noisy[0], torch.full((4,), time), condition)
        torch.testing.assert_close(predicted, slope * remainder[0], rtol=0.02, atol=0.02)


@torch.no_grad()
def test_an_estimate_begins_with_what_the_shortcut_carried():
    silent, telling = (conditions(estimating(shortcut=shortcut))[1].estimate for shortcut in (False, True))
    assert not silent.any()
    assert telling.std() > 0.1
