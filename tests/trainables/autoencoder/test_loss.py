"""Each term of Eq. 3 against an independent calculation, and the pictures that the discriminator gets."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import LossWeights
from mmldm_scale.trainables.autoencoder.loss import fake_arrangements
from mmldm_scale.training.trainable import StepInfo, Trainable
from tests.support.tiny_models import tiny_autoencoder
from tests.support.tiny_models.autoencoder_trainable import batch_of, build, output_of, write_data

ESTIMATING = dataclasses.replace(
    tiny_autoencoder.CONFIG, decoder=dataclasses.replace(tiny_autoencoder.CONFIG.decoder, estimate=True)
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("loss"))


def opened(data: Path, **settings) -> Trainable:
    """Return the trainable with random values in its zero-initialised layers."""
    trainable = build(data, **settings)
    tiny_autoencoder.opened(trainable.module.autoencoder)
    return trainable


def pictures_of(trainable: Trainable, samples: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the signals (B, F + 1, 3, S, S) of ``samples``, the audio images last."""
    frames = samples["frames"].movedim(-1, -3).float() / 127.5 - 1
    return torch.cat([frames, trainable.module.audio_image.encode(samples["waveform"])[:, None]], dim=1)


def posteriors_of(trainable: Trainable, samples: dict[str, torch.Tensor]) -> tuple[Normal, Normal]:
    """Return the posteriors of audio and video for ``samples``."""
    pictures = pictures_of(trainable, samples)
    posteriors = trainable.module.autoencoder.encode(pictures[:, :-1], pictures[:, -1])
    return tuple(Normal(part.mean, (part.logvar / 2).exp()) for part in (posteriors.audio, posteriors.video))


def test_the_loss_is_the_weighted_sum_of_its_terms(data):
    weights = {"kl_weight": 0.01, "classification_weight": 0.3, "contrastive_weight": 0.7, "estimate_weight": 0.5}
    trainable = opened(data, model=ESTIMATING, **weights)
    expected = {"mse": 1.0, "kl_audio": 0.01, "kl_video": 0.01}
    assert trainable.term_weights == expected | {"classification": 0.3, "contrastive": 0.7, "estimate": 0.5}
    output = output_of(trainable, range(4))
    assert all(value.shape == (4,) and value.dtype == torch.float32 for value in output.logged().values())
    terms = sum(weight * output.terms[name] for name, weight in trainable.term_weights.items())
    torch.testing.assert_close(output.loss, terms)
    audio, video = output.metrics["loss/audio"], output.metrics["loss/video"]
    torch.testing.assert_close(output.terms["mse"], audio + video)


@pytest.mark.parametrize("frames", [2, 4])
def test_the_modalities_count_by_their_weights_whatever_the_number_of_frames(data, frames):
    weighted, plain = (
        output_of(opened(data, frames_per_clip=frames, **settings), range(4))
        for settings in ({"loss_weights": LossWeights(0.3, 2.0)}, {})
    )
    audio, video = plain.metrics["loss/audio"], plain.metrics["loss/video"]
    torch.testing.assert_close(weighted.terms["mse"], 0.3 * audio + 2 * video)
    torch.testing.assert_close(plain.terms["mse"], audio + video)
    for name in ("loss/audio", "loss/video"):
        assert torch.equal(weighted.metrics[name], plain.metrics[name])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((-1, 1), "loss_weights.audio: -1: must be at least 0, and finite"),
        ((1, float("inf")), "loss_weights.video: inf: must be at least 0, and finite"),
        ((0, 0), "loss_weights: audio=0 and video=0: one must be greater than 0"),
    ],
)
def test_loss_weights_that_do_not_work_are_refused_in_one_line(weights, message):
    with pytest.raises(UserError) as caught:
        LossWeights(*weights)
    assert str(caught.value) == message


def test_kl_terms_are_the_divergences_of_the_posteriors(data):
    trainable = opened(data)
    output, normal = output_of(trainable, range(4)), Normal(0.0, 1.0)
    for name, posterior in zip(
        ("audio", "video"), posteriors_of(trainable, batch_of(trainable, range(4))), strict=True
    ):
        torch.testing.assert_close(output.terms[f"kl_{name}"], kl_divergence(posterior, normal).sum((1, 2, 3)))


def test_semantic_terms_are_those_of_the_sampled_latents(data):
    """Classes are those of the shards; a clip without one has cross-entropy 0. Eq. 1 compares the batch's clips."""
    trainable = opened(data)
    samples, output = batch_of(trainable, range(4)), output_of(trainable, range(4))
    model = trainable.module.autoencoder
    names = ("audio_noise", "video_noise")
    latents = [p.mean + p.stddev * samples[n] for p, n in zip(posteriors_of(trainable, samples), names, strict=True)]
    semantics = model.semantics(*latents)
    probabilities, labels = model.classify(semantics).softmax(1), samples["label"].tolist()
    assert set(labels) == {-1, 0, 1}
    for i, label in enumerate(labels):
        expected = torch.tensor(0.0) if label < 0 else -probabilities[i, label].log()
        torch.testing.assert_close(output.terms["classification"][i], expected, atol=1e-5, rtol=1e-4)

    audio, video = model.contrast(semantics)
    scores = (model.temperature * audio @ video.T).exp()
    matches = scores.diagonal()
    expected = -0.5 * ((matches / scores.sum(1)).log() + (matches / scores.sum(0)).log())
    torch.testing.assert_close(output.terms["contrastive"], expected, atol=1e-4, rtol=1e-4)


def test_a_label_is_that_of_its_clip(data):
    """Clip n is identified by its tone; classes alternate, and every third clip has none."""
    trainable = build(data)
    for position in range(6):
        sample = trainable.dataset[position]
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
        {"condition_dropout": 0.0, "model.shared_decoder": False},
        {"condition_dropout": 1.0, "model.detach_projectors": False},
        {"model.semantics": False},
    ],
)
def test_every_parameter_gets_a_gradient(data, model, settings):
    """Parameters that no term reaches, such as a head whose term has weight 0, are not built."""
    changes = {key.removeprefix("model."): value for key, value in settings.items() if key.startswith("model.")}
    others = {key: value for key, value in settings.items() if not key.startswith("model.")}
    trainable = opened(data, model=dataclasses.replace(model, **changes), **others)
    output_of(trainable, range(4)).loss.mean().backward()
    assert [name for name, p in trainable.module.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("model", [tiny_autoencoder.CONFIG, ESTIMATING])
def test_dropped_pictures_are_decoded_without_their_latents(data, model):
    """Other noise of the posteriors gives other perceptual latents and changes the decoded pictures but for these."""
    trainable = opened(data, model=model)
    samples = batch_of(trainable, range(4))
    samples["dropped"] = torch.tensor([[True, False, False], [False, False, True]]).repeat(2, 1)
    trainable.begin_step(StepInfo(adversarial=True))
    fakes = []
    for sign in (1, -1):
        noise = {name: sign * 10 * samples[name] for name in ("audio_noise", "video_noise")}
        fakes.append(trainable.module(samples | noise).discriminator_inputs.fake)  # audio image, earlier, later frame
    change = (fakes[0] - fakes[1]).abs().amax(dim=(2, 3, 4))
    earlier = samples["targets"].argmin(dim=1)
    expected = [
        [True, first != 0, first == 0] if row % 2 == 0 else [False, True, True]
        for row, first in enumerate(earlier.tolist())
    ]
    assert (change > 1e-6).tolist() == expected


def test_the_estimates_of_dropped_pictures_are_learned_too(data):
    trainable = opened(data, model=ESTIMATING)
    samples = batch_of(trainable, range(4))
    errors = [
        trainable.module(samples | {"dropped": torch.full((4, 3), dropped)}).terms["estimate"]
        for dropped in (False, True)
    ]
    assert torch.equal(*errors)


def test_the_share_of_dropped_pictures_is_condition_dropout(data):
    dataset = build(data, condition_dropout=0.3).dataset
    dropped = torch.stack([dataset[position]["dropped"] for position in range(200)])
    assert dropped.shape == (200, 3)
    assert ((dropped.float().mean(0) - 0.3).abs() < 0.1).all()
    both = (dropped[:, 0] & dropped[:, 1]).float().mean()
    assert abs(both - 0.09) < 0.05  # independent for each picture
    never = build(data, condition_dropout=0.0).dataset
    assert not any(never[position]["dropped"].any() for position in range(20))


@pytest.mark.parametrize("real_pictures", ["original", "kl_vae"])
def test_discriminator_inputs_are_the_pictures_and_their_reconstructions(data, monkeypatch, real_pictures):
    """A perfect decoder returns the pictures as the KL-VAE reconstructs them if noise, times and frames match."""
    trainable = opened(data, frames_per_clip=3, flip=0.0, real_pictures=real_pictures)
    samples, model = batch_of(trainable, range(4)), trainable.module.autoencoder
    pictures = pictures_of(trainable, samples)
    latents = model.picture_latents(pictures.flatten(0, 1)).unflatten(0, (4, -1))
    rows = torch.arange(4)[:, None]
    clean = {4: latents[:, -1], 12: latents[rows, samples["targets"]].flatten(0, 1)}
    alpha_bar = trainable.module.process.alphas_cumprod

    def solve(noisy, time, condition):
        scale = alpha_bar[time].view(-1, 1, 1, 1)
        return (noisy - scale.sqrt() * clean[len(noisy)]) / (1 - scale).sqrt()

    monkeypatch.setattr(model.decoder, "forward", solve)
    trainable.begin_step(StepInfo(adversarial=True))
    inputs = trainable.module(samples).discriminator_inputs
    pair = samples["targets"][:, :2].sort(dim=1).values
    triple = torch.cat([torch.full((4, 1), pictures.shape[1] - 1), pair], dim=1)  # audio image, i < j
    assert (triple[:, 1] < triple[:, 2]).all()
    restored = model.picture(latents[rows, triple].flatten(0, 1)).unflatten(0, (4, 3))
    assert pictures.abs().max() <= 1
    torch.testing.assert_close(inputs.real, restored if real_pictures == "kl_vae" else pictures[rows, triple])
    assert not inputs.real.requires_grad
    torch.testing.assert_close(inputs.fake, restored, atol=1e-3, rtol=1e-3)


def schedule() -> np.ndarray:
    """Return √ᾱ of Stable Diffusion's 1000 timesteps."""
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.0120**0.5, 1000) ** 2) ** 0.5


def test_timesteps_are_independent_and_the_adversarial_weight_is_1_on_average(data):
    dataset = build(data).dataset
    times = np.stack([dataset[position]["time"].numpy() for position in range(4000)])  # (4000, 3)
    assert abs((schedule()[times] / schedule().mean()).mean() - 1) < 0.02
    correlations = np.corrcoef(times.T)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 3.5 / 4000**0.5


def test_the_adversarial_gradient_of_a_picture_is_scaled_by_its_own_timestep(data, monkeypatch):
    """The pictures are those of the estimated latents, whose gradient towards ε̂ is −√(1 − ᾱ) / √ᾱ without a weight."""
    trainable = opened(data, flip=0.0)
    samples, model = batch_of(trainable, range(4)), trainable.module.autoencoder
    predicted: list[torch.Tensor] = []

    def predict(noisy, time, condition):
        predicted.append(torch.zeros_like(noisy).requires_grad_())
        return predicted[-1]

    monkeypatch.setattr(model.decoder, "forward", predict)
    monkeypatch.setattr(model, "picture", lambda latents: latents)
    trainable.begin_step(StepInfo(adversarial=True))
    trainable.module(samples).discriminator_inputs.fake.sum().backward()
    audio, video = predicted
    gradients = torch.cat([video.grad.unflatten(0, (4, 2)), audio.grad[:, None]], dim=1)  # (4, 3, c, s, s)
    signal = schedule()[samples["time"].numpy()]
    expected = -np.sqrt(1 - signal**2) / signal * (signal / schedule().mean())
    for picture in np.ndindex(4, 3):
        np.testing.assert_allclose(gradients[picture].numpy(), expected[picture], rtol=1e-3)


def test_gradients_of_the_fakes_reach_decoder_and_encoders(data):
    trainable = opened(data)
    trainable.begin_step(StepInfo(adversarial=True))
    output_of(trainable, range(4)).discriminator_inputs.fake.square().mean().backward()
    for part in ("decoder.unets", "video_encoder", "audio_encoder", "audio_projector"):
        assert any(p.grad is not None and p.grad.any() for n, p in trainable.module.named_parameters() if part in n), (
            part
        )
    assert all(p.grad is None for p in trainable.module.autoencoder.kl_vae.parameters())


def test_the_output_has_what_the_step_needs(data):
    trainable = opened(data)
    plain = output_of(trainable, range(4))
    assert plain.gradient_probes == {}
    assert plain.discriminator_inputs is None
    trainable.begin_step(StepInfo(logged=True))
    output = output_of(trainable, range(4))
    assert output.discriminator_inputs is None
    torch.testing.assert_close(output.metrics["temperature"], torch.full((4,), 1 / 0.07))
    shapes = {name: [part.shape[0] for part in parts] for name, parts in output.gradient_probes.items()}
    assert shapes == {"latents": [4, 4], "semantics": [4, 4]}
    for parts in output.gradient_probes.values():
        assert all(g.any() for g in torch.autograd.grad(output.loss.mean(), parts, retain_graph=True))


def test_the_four_fakes_of_equation_2():
    triples = torch.arange(6.0).view(2, 1, 3, 1, 1, 1).expand(-1, 2, -1, 3, 4, 4)  # real 0, 1, 2; decoded 3, 4, 5
    values = [fake[:, :, 0, 0, 0].tolist() for fake in fake_arrangements(*triples)]
    assert values == [[row] * 2 for row in ([3, 4, 5], [3, 4, 2], [3, 1, 5], [3, 5, 4])]
