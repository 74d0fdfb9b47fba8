import math

import numpy as np
import pytest
import torch

from mmldm_scale.models.autoencoder.semantic import ClassificationHead, ContrastiveHead, Projector, Semantics
from tests.support.tiny_models import tiny_autoencoder


def semantics(seed: int = 0) -> Semantics:
    random = torch.Generator().manual_seed(seed)
    return Semantics(torch.randn(3, 4, 16, generator=random), torch.randn(3, 16, 16, generator=random))


def weights(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: parameter.detach().double().numpy() for name, parameter in module.named_parameters()}


def test_tokens_come_in_raster_order():
    """Each token depends most on its own position in the latent, or on a neighbour of it."""
    torch.manual_seed(0)
    projector = Projector((4, 8, 8), 16)
    latent = torch.randn(1, 4, 8, 8, requires_grad=True)
    tokens = projector(latent)
    assert tokens.shape == (1, 64, 16)
    for row, column in ((0, 0), (2, 5), (7, 3)):
        (gradient,) = torch.autograd.grad(tokens[0, 8 * row + column, 0], latent, retain_graph=True)
        strongest = divmod(int(gradient[0].square().sum(dim=0).argmax()), 8)
        assert max(abs(strongest[0] - row), abs(strongest[1] - column)) <= 1


@torch.no_grad()
def test_a_class_is_read_from_both_modalities():
    torch.manual_seed(0)
    head, pair = ClassificationHead(16, 5), semantics()
    w = weights(head)
    pooled = np.concatenate([pair.audio.double().numpy().mean(1), pair.video.double().numpy().mean(1)], axis=1)
    hidden = pooled @ w["hidden.weight"].T + w["hidden.bias"]
    hidden = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2  # GELU
    expected = hidden @ w["out.weight"].T + w["out.bias"]
    np.testing.assert_allclose(head(pair).numpy(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_contrasted_vectors_have_length_one_and_one_head():
    torch.manual_seed(0)
    head, pair = ContrastiveHead(16, 6), semantics()
    for tokens in (pair.audio, pair.video):
        expected = tokens.double().numpy().mean(1) @ weights(head)["out.weight"].T
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(head(tokens).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_temperature_is_learned_up_to_a_hundred():
    temperature = ContrastiveHead(16, 6).temperature
    torch.testing.assert_close(temperature(), torch.tensor(1 / 0.07))
    temperature().backward()
    torch.testing.assert_close(temperature.log.grad, torch.tensor([1 / 0.07]))  # that of exp
    torch.nn.init.constant_(temperature.log, 7.0)
    assert temperature() == 100


def test_models_heads_are_float32_whatever_its_precision():
    model = tiny_autoencoder.build(classes=["rain", "wind", "fire"])
    pair = model.semantics(*tiny_autoencoder.latents(model))
    logits, (audio, video) = model.classify(pair), model.contrast(pair)
    assert (pair.audio.shape, pair.video.shape) == ((2, 4, 16), (2, 16, 16))
    assert (logits.shape, audio.shape, video.shape) == ((2, 3), (2, 256), (2, 256))
    model.bfloat16()
    low = model.semantics(*(latent.bfloat16() for latent in tiny_autoencoder.latents(model)))
    outputs = [model.classify(low), *model.contrast(low), model.temperature]
    assert all(value.dtype == torch.float32 for value in outputs)
    torch.testing.assert_close(outputs[0], logits, rtol=0.05, atol=0.05)
    torch.testing.assert_close(outputs[1], audio, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("detached", [False, True])
def test_detached_projectors_learn_alone(detached):
    """The semantic losses, and what the decoder makes of the semantics, then teach the encoders nothing."""
    model = tiny_autoencoder.build(detach_projectors=detached, classes=["rain", "wind"])
    latents = [latent.requires_grad_() for latent in tiny_autoencoder.latents(model)]
    pair = model.semantics(*latents)
    audio, video = model.contrast(pair)
    (model.classify(pair).logsumexp(1).sum() + (audio * video).sum()).backward()
    assert all((latent.grad is None) == detached for latent in latents)
    assert model.audio_projector.stem.weight.grad.any()
    assert model.video_projector.stem.weight.grad.any()


def test_without_semantics_there_is_nothing_of_them():
    model = tiny_autoencoder.build(semantics=False, classes=["rain", "wind"])
    assert model.semantics(*tiny_autoencoder.latents(model)) is None
    assert not [
        name for name in model.state_dict() if "projector" in name or "head." in name.replace("encoder.head", "")
    ]
    assert not [name for name in model.state_dict() if "class_embeddings" in name or "null" in name]
    assert not [name for name in tiny_autoencoder.build(contrastive_width=0).state_dict() if "contrastive" in name]
    assert not [name for name in tiny_autoencoder.build().state_dict() if "classification" in name]
