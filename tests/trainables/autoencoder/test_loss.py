"""Each term of Eq. 3 against a calculation of its own, and the pictures that the discriminator is shown."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from mmldm_scale.trainables.autoencoder.loss import fake_arrangements
from mmldm_scale.training.trainable import StepInfo, Trainable
from tests.support.tiny_models import tiny_autoencoder
from tests.support.tiny_models.autoencoder_trainable import batch, losses, trainable, write_data

ESTIMATING = dataclasses.replace(
    tiny_autoencoder.CONFIG, decoder=dataclasses.replace(tiny_autoencoder.CONFIG.decoder, estimate=True)
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("objective"))


def opened(data: Path, **settings) -> Trainable:
    """Return the trainable with its zero-initialised layers filled, as training would."""
    one = trainable(data, **settings)
    tiny_autoencoder.opened(one.module.autoencoder)
    return one


def pictures_of(one: Trainable, samples: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the signals (B, F + 1, 3, S, S) of ``samples``, the audio images last."""
    frames = samples["frames"].movedim(-1, -3).float() / 127.5 - 1
    return torch.cat([frames, one.module.audio_image.encode(samples["waveform"])[:, None]], dim=1)


def posteriors_of(one: Trainable, samples: dict[str, torch.Tensor]) -> tuple[Normal, Normal]:
    pictures = pictures_of(one, samples)
    found = one.module.autoencoder.encode(pictures[:, :-1], pictures[:, -1])
    return tuple(Normal(part.mean, (part.logvar / 2).exp()) for part in (found.audio, found.video))


def test_loss_is_the_weighted_sum(data):
    weights = {"kl_weight": 0.01, "classification_weight": 0.3, "contrastive_weight": 0.7, "estimate_weight": 0.5}
    one = opened(data, model=ESTIMATING, **weights)
    expected = {"mse": 1.0, "kl_audio": 0.01, "kl_video": 0.01}
    assert one.term_weights == expected | {"classification": 0.3, "contrastive": 0.7, "estimate": 0.5}
    found = losses(one, range(4))
    assert all(value.shape == (4,) and value.dtype == torch.float32 for value in found.values())
    terms = sum(weight * found.terms[name] for name, weight in one.term_weights.items())
    torch.testing.assert_close(found.loss, terms)
    torch.testing.assert_close(found.terms["mse"], (found.metrics["loss/audio"] + 2 * found.metrics["loss/video"]) / 3)


def test_divergences_are_those_of_the_posteriors(data):
    one = opened(data)
    found, normal = losses(one, range(4)), Normal(0.0, 1.0)
    for name, posterior in zip(("audio", "video"), posteriors_of(one, batch(one, range(4))), strict=True):
        torch.testing.assert_close(found[f"term/kl_{name}"], kl_divergence(posterior, normal).sum((1, 2, 3)))


def test_semantic_terms_are_those_of_the_drawn_latents(data):
    """The classes are the shards'; a clip without one has no cross-entropy. Eq. 1 compares the clips of the batch."""
    one = opened(data)
    samples, found, model = batch(one, range(4)), losses(one, range(4)), one.module.autoencoder
    names = ("audio_noise", "video_noise")
    latents = [p.mean + p.stddev * samples[n] for p, n in zip(posteriors_of(one, samples), names, strict=True)]
    semantics = model.semantics(*latents)
    chances, labels = model.classify(semantics).softmax(1), samples["label"].tolist()
    assert set(labels) == {-1, 0, 1}
    for i, label in enumerate(labels):
        expected = torch.tensor(0.0) if label < 0 else -chances[i, label].log()
        torch.testing.assert_close(found.terms["classification"][i], expected, atol=1e-5, rtol=1e-4)

    audio, video = model.contrast(semantics)
    likeness = (model.temperature * audio @ video.T).exp()
    matches = likeness.diagonal()
    expected = -0.5 * ((matches / likeness.sum(1)).log() + (matches / likeness.sum(0)).log())
    torch.testing.assert_close(found.terms["contrastive"], expected, atol=1e-4, rtol=1e-4)


def test_labels_are_the_clips_own(data):
    """Clip n is told by its tone; classes come in turn, every third clip has none."""
    one = trainable(data)
    for position in range(6):
        sample = one.dataset[position]
        spectrum = torch.fft.rfft(sample["waveform"]).abs()
        tone = spectrum.argmax().item() * tiny_autoencoder.AUDIO.sample_rate / len(sample["waveform"])
        number = round((tone - 200) / 150)
        assert sample["label"].item() == (0, 1, -1)[number % 3]


@pytest.mark.parametrize("model", [tiny_autoencoder.CONFIG, ESTIMATING])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"classification_weight": 0.0},
        {"contrastive_weight": 0.0},
        {"context_dropout": 0.0, "model.shared_decoder": False},
        {"context_dropout": 1.0, "model.detach_projectors": True},
        {"model.semantics": False},
    ],
)
def test_every_parameter_learns(data, model, settings):
    """What no loss reaches, such as a head of weight zero, is not there."""
    changes = {key.removeprefix("model."): value for key, value in settings.items() if key.startswith("model.")}
    rest = {key: value for key, value in settings.items() if not key.startswith("model.")}
    one = opened(data, model=dataclasses.replace(model, **changes), **rest)
    losses(one, range(4)).loss.mean().backward()
    assert [name for name, p in one.module.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("model", [tiny_autoencoder.CONFIG, ESTIMATING])
def test_dropped_pictures_are_drawn_without_semantics_and_class(data, model):
    one = opened(data, model=model)
    samples = batch(one, range(4))
    samples["dropped"] = torch.tensor([[True, False, False], [False, False, True]]).repeat(2, 1)
    one.begin_step(StepInfo(adversarial=True))
    fakes = []
    for label in (0, 1):
        samples["label"] = torch.full((4,), label)
        fakes.append(one.module(samples).discriminator_inputs.fake)  # audio image, earlier and later frame
    change = (fakes[0] - fakes[1]).abs().amax(dim=(2, 3, 4))
    earlier = samples["targets"].argmin(dim=1)
    told = [[True, e != 0, e == 0] if row % 2 == 0 else [False, True, True] for row, e in enumerate(earlier.tolist())]
    assert (change > 1e-6).tolist() == told


def test_share_of_dropped_pictures(data):
    dataset = trainable(data, context_dropout=0.3).dataset
    dropped = torch.stack([dataset[position]["dropped"] for position in range(200)])
    assert dropped.shape == (200, 3)
    assert ((dropped.float().mean(0) - 0.3).abs() < 0.1).all()
    never = trainable(data, context_dropout=0.0).dataset
    assert not any(never[position]["dropped"].any() for position in range(20))


@pytest.mark.parametrize("real_pictures", ["original", "kl_vae"])
def test_exhibits_are_the_pictures_and_what_the_decoder_makes_of_them(data, monkeypatch, real_pictures):
    """A decoder that knows all gives back the pictures, through the KL-VAE: which noise, time and frame is which."""
    one = opened(data, frames_per_clip=3, flip=0.0, real_pictures=real_pictures)
    samples, model = batch(one, range(4)), one.module.autoencoder
    pictures = pictures_of(one, samples)
    latents = model.picture_latents(pictures.flatten(0, 1)).unflatten(0, (4, -1))
    rows = torch.arange(4)[:, None]
    clean = {4: latents[:, -1], 12: latents[rows, samples["targets"]].flatten(0, 1)}
    kept = one.module.schedule.alphas_cumprod

    def solve(noisy, time, condition):
        share = kept[time].view(-1, 1, 1, 1)
        return (noisy - share.sqrt() * clean[len(noisy)]) / (1 - share).sqrt()

    monkeypatch.setattr(model.decoder, "forward", solve)
    one.begin_step(StepInfo(adversarial=True))
    exhibits = one.module(samples).discriminator_inputs
    pair = samples["targets"][:, :2].sort(dim=1).values
    triple = torch.cat([torch.full((4, 1), pictures.shape[1] - 1), pair], dim=1)  # audio image, i < j
    assert (triple[:, 1] < triple[:, 2]).all()
    restored = model.picture(latents[rows, triple].flatten(0, 1)).unflatten(0, (4, 3))
    assert pictures.abs().max() <= 1
    torch.testing.assert_close(exhibits["real"], restored if real_pictures == "kl_vae" else pictures[rows, triple])
    assert not exhibits["real"].requires_grad
    torch.testing.assert_close(exhibits["fake"], restored, atol=1e-3, rtol=1e-3)
    noisiest = samples["time"][:, [0, 1, 3]].amax(dim=1)
    torch.testing.assert_close(exhibits["weight"], kept[noisiest].sqrt())


def test_gradients_of_the_exhibits_reach_decoder_and_encoders(data):
    one = opened(data)
    one.begin_step(StepInfo(adversarial=True))
    losses(one, range(4)).discriminator_inputs.fake.square().mean().backward()
    for part in ("decoder.unets", "video_encoder", "audio_encoder", "audio_projector"):
        assert any(p.grad is not None and p.grad.any() for n, p in one.module.named_parameters() if part in n), part
    assert all(p.grad is None for p in one.module.autoencoder.kl_vae.parameters())


def test_gives_what_the_step_asks_for(data):
    one = opened(data)
    assert not {"through", "exhibits"} & losses(one, range(4)).keys()
    one.begin_step(StepInfo(logged=True))
    found = losses(one, range(4))
    assert "exhibits" not in found
    torch.testing.assert_close(found["temperature"], torch.full((4,), 1 / 0.07))
    shapes = {name: [part.shape[0] for part in parts] for name, parts in found.gradient_probes.items()}
    assert shapes == {"latents": [4, 4], "semantics": [4, 4]}
    for parts in found.gradient_probes.values():
        assert all(g.any() for g in torch.autograd.grad(found.loss.mean(), parts, retain_graph=True))


def test_the_four_fakes_of_equation_2():
    triples = torch.arange(6.0).view(2, 1, 3, 1, 1, 1).expand(-1, 2, -1, 3, 4, 4)  # real 0, 1, 2; decoded 3, 4, 5
    found = [fake[:, :, 0, 0, 0].tolist() for fake in fake_arrangements(*triples)]
    assert found == [[row] * 2 for row in ([3, 4, 5], [3, 4, 2], [3, 1, 5], [3, 5, 4])]
