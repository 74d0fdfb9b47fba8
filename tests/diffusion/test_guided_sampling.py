import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DiffusionConfig, DiTConfig
from mmldm_scale.diffusion.guided_sampling import Latents, sample_latents
from mmldm_scale.diffusion.noise_process import noise_process
from mmldm_scale.models.dit import DiT
from tests.support.ideal_network import ALPHAS, MEAN, PREDICTIONS, STD, flow, mixture, posterior_means, predict

AUDIO, VIDEO = (4, 2, 2), (4, 3, 3)


def noise(size: int = 2) -> Latents:
    random = torch.Generator().manual_seed(5)
    return Latents(*(torch.randn(size, *shape, generator=random) for shape in (AUDIO, VIDEO)))


def exact_epsilon(z, time: int):
    """E[n | z^t = z] for clean latents distributed as N(MEAN, STD²)."""
    return posterior_means(z, {}, time, STD)[1]


class Analytic(nn.Module):
    """In place of the DiT: exact for the Gaussian; a condition adds its value, so that guidance can be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, Tensor, Tensor]] = []

    def forward(
        self,
        audio: Tensor,
        video: Tensor,
        time: Tensor,
        audio_condition: Tensor | None = None,
        video_condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        self.seen.append((int(time[0]), audio, video))
        condition = audio_condition if audio_condition is not None else video_condition
        extra = 0 if condition is None else condition.mean(dim=(1, 2, 3)).view(-1, 1, 1, 1)
        return exact_epsilon(audio, int(time[0])) + extra, exact_epsilon(video, int(time[0])) + extra


def numpy_ddim(start: np.ndarray, steps: int, epsilon) -> np.ndarray:
    """DDIM with η = 0, written from its equation in float64; ᾱ before the first timestep is 1."""
    stride, z = 1000 // steps, start.astype(np.float64)
    for time in range(999, -1, -stride):
        now, then = ALPHAS[time], ALPHAS[time - stride] if time >= stride else 1.0
        e = epsilon(z, time)
        clean = (z - np.sqrt(1 - now) * e) / np.sqrt(now)
        z = np.sqrt(then) * clean + np.sqrt(1 - then) * e
    return z


@pytest.mark.parametrize("steps", [5, 50])
def test_svg_is_ddim(steps):
    result = sample_latents(Analytic(), noise_process(DiffusionConfig()), "svg", noise(), steps)
    for z, start in ((result.audio, noise().audio), (result.video, noise().video)):
        np.testing.assert_allclose(z.numpy(), numpy_ddim(start.numpy(), steps, exact_epsilon), atol=2e-4)


def test_with_many_steps_the_gaussian_is_sampled():
    many = Latents(torch.randn(2000, 1, 1, 1, generator=torch.Generator().manual_seed(0)), torch.zeros(2000, 1, 1, 1))
    audio = sample_latents(Analytic(), noise_process(DiffusionConfig()), "svg", many, 250).audio
    assert abs(audio.mean() - MEAN) < 0.03
    assert abs(audio.std() - STD) < 0.03


@pytest.mark.parametrize(("task", "given", "made"), [("a2v", "audio", "video"), ("v2a", "video", "audio")])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_conditional_generation_is_guided_and_keeps_what_is_given(task, given, made, guidance):
    shape = AUDIO if given == "audio" else VIDEO
    condition = torch.full((2, *shape), 0.2)
    network, start = Analytic(), noise()
    result = sample_latents(network, noise_process(DiffusionConfig()), task, start, 20, guidance, condition)
    assert torch.equal(getattr(result, given), condition)
    expected = numpy_ddim(  # φ (ε + 0.2) − (φ − 1) ε
        getattr(start, made).numpy(), 20, lambda z, t: exact_epsilon(z, t) + guidance * 0.2
    )
    np.testing.assert_allclose(getattr(result, made).numpy(), expected, atol=5e-4)
    for time, audio, video in network.seen:  # the given modality follows Eq. 5 with its own fixed noise
        seen, a = (audio if given == "audio" else video)[:2], ALPHAS[time]
        corrupted = np.sqrt(a) * condition.numpy() + np.sqrt(1 - a) * getattr(start, given).numpy()
        np.testing.assert_allclose(seen.numpy(), corrupted, atol=1e-5)
    assert len(network.seen) == 20  # condition and null go through in one batch


def test_guidance_one_is_plain_conditional_generation_with_the_real_network():
    torch.manual_seed(0)
    dit = DiT(DiTConfig(depth=2, width=32, heads=2, context_tokens=2, context_width=4), AUDIO, VIDEO)
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.1)
    process, start, condition = noise_process(DiffusionConfig()), noise(), torch.randn(2, *AUDIO)
    guided = sample_latents(dit, process, "a2v", start, 10, 1.0, condition)

    def epsilon(z: np.ndarray, time: int) -> np.ndarray:
        a = float(ALPHAS[time])
        audio = a**0.5 * condition + (1 - a) ** 0.5 * start.audio
        with torch.no_grad():
            _, video = dit(audio, torch.from_numpy(z).float(), torch.full((2,), time), audio_condition=condition)
        return video.double().numpy()

    np.testing.assert_allclose(guided.video.numpy(), numpy_ddim(start.video.numpy(), 10, epsilon), atol=1e-3)
    strong = sample_latents(dit, process, "a2v", start, 10, 4.0, condition)
    assert (strong.video - guided.video).abs().max() > 1e-2


def opened() -> DiT:
    torch.manual_seed(0)
    config = DiTConfig(depth=2, width=32, heads=2, context_tokens=3, context_width=4, continuation=True)
    dit = DiT(config, AUDIO, VIDEO, classes=3)
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return dit


LABEL = {"label": torch.tensor([2, 0])}
TEXT = {"context": torch.randn(2, 3, 4), "context_length": torch.tensor([3, 1])}
BEFORE = {"audio": torch.randn(2, *AUDIO), "video": torch.randn(2, *VIDEO)}
PREVIOUS = {f"previous_{name}": x for name, x in BEFORE.items()}


@pytest.mark.parametrize(
    ("task", "context", "previous", "told"),
    [
        ("svg", LABEL, None, LABEL),
        ("svg", TEXT, None, TEXT),
        ("svg", None, BEFORE, PREVIOUS),
        ("svg", LABEL, {"audio": BEFORE["audio"]}, {**LABEL, "previous_audio": BEFORE["audio"]}),
        ("a2v", None, BEFORE, {**PREVIOUS, "audio_condition": BEFORE["audio"]}),
        ("a2v", LABEL, None, {**LABEL, "audio_condition": BEFORE["audio"]}),
    ],
)
def test_guidance_leaves_out_all_that_is_given_and_each_modality_has_its_own(task, context, previous, told):
    """One step from noise to clean latents, against its equation: (z − σ (φ ε(all) − (φ − 1) ε(nothing))) / α."""
    dit, start, condition = opened(), noise(), BEFORE["audio"] if task == "a2v" else None
    strength, process = {"audio": 1.5, "video": 3.0}, noise_process(DiffusionConfig())
    got = sample_latents(dit, process, task, start, 1, strength, condition, context, previous)
    a = float(ALPHAS[999])
    seen = {"audio": start.audio, "video": start.video}
    if condition is not None:
        seen["audio"] = a**0.5 * condition + (1 - a) ** 0.5 * start.audio
    with torch.no_grad():
        times = torch.full((2,), 999)
        with_all, with_nothing = dit(*seen.values(), times, **told), dit(*seen.values(), times)
    for name, one, other in zip(seen, with_all, with_nothing, strict=True):
        epsilon = strength[name] * one - (strength[name] - 1) * other
        expected = (seen[name] - (1 - a) ** 0.5 * epsilon) / a**0.5
        if name == "audio" and condition is not None:
            expected = condition
        assert (one - other).abs().max() > 1e-2  # what is given is seen at all
        torch.testing.assert_close(getattr(got, name), expected, rtol=1e-3, atol=1e-2)  # ε / √ᾱ: 15 ε


class Ideal(nn.Module):
    """In place of the DiT: what a network predicts that learned latents distributed as N(MEAN, spread²) perfectly."""

    def __init__(self, settings: dict, spread: float) -> None:
        super().__init__()
        self.settings, self.spread = settings, spread
        self.seen: list[tuple[int, Tensor]] = []

    def forward(self, audio: Tensor, video: Tensor, time: Tensor, **conditions: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append((int(time[0]), audio))
        return tuple(predict(z, self.settings, int(time[0]), self.spread) for z in (audio, video))


@pytest.mark.parametrize("settings", PREDICTIONS.values(), ids=PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_an_ideal_networks_only_latents_are_sampled_exactly(settings, steps):
    result = sample_latents(Ideal(settings, 0.0), noise_process(DiffusionConfig(**settings)), "svg", noise(), steps)
    for made in (result.audio, result.video):
        torch.testing.assert_close(made, torch.full_like(made, MEAN), atol=1e-3, rtol=0)


@pytest.mark.parametrize("settings", PREDICTIONS.values(), ids=PREDICTIONS)
@pytest.mark.parametrize("steps", [5, 50])
def test_each_step_mixes_the_expected_latents_and_noise_anew(settings, steps):
    process = noise_process(DiffusionConfig(**settings))
    result = sample_latents(Ideal(settings, STD), process, "svg", noise(), steps)
    for made, start in ((result.audio, noise().audio), (result.video, noise().video)):
        z = start.double().numpy()
        for time in range(999, -1, -1000 // steps):
            latents, left = posterior_means(z, settings, time, STD)
            kept, added = mixture(settings, time - 1000 // steps)
            z = kept * latents + added * left
        np.testing.assert_allclose(made.numpy(), z, atol=5e-4)


@pytest.mark.parametrize("settings", PREDICTIONS.values(), ids=PREDICTIONS)
def test_with_many_steps_the_noise_is_carried_to_the_ideal_networks_distribution(settings):
    many = Latents(torch.randn(2000, 1, 1, 1, generator=torch.Generator().manual_seed(0)), torch.zeros(2000, 1, 1, 1))
    process = noise_process(DiffusionConfig(**settings))
    audio = sample_latents(Ideal(settings, STD), process, "svg", many, 500).audio
    kept, added = mixture(settings, 999)  # the flow's solution from there: what is N(0, 1) and should be z^T
    expected = MEAN + STD * (many.audio - kept * MEAN) / np.hypot(kept * STD, added)
    torch.testing.assert_close(audio, expected.float(), atol=0.05, rtol=0)
    assert abs(audio.mean() - expected.mean()) < 5e-3
    bias = audio.mean() - MEAN - STD * many.audio.mean()
    assert (abs(bias) < 5e-3) == (kept == 0)  # what ends in pure noise begins with it; else about 0.03 is missing


@pytest.mark.parametrize("settings", PREDICTIONS.values(), ids=PREDICTIONS)
def test_what_is_given_is_corrupted_as_in_training(settings):
    condition, network = torch.full((2, *AUDIO), 0.2), Ideal(settings, 0.0)
    process = noise_process(DiffusionConfig(**settings))
    result = sample_latents(network, process, "a2v", noise(), 10, 3.0, condition)
    assert torch.equal(result.audio, condition)
    torch.testing.assert_close(result.video, torch.full_like(result.video, MEAN), atol=1e-3, rtol=0)
    assert [time for time, _ in network.seen] == list(range(999, -1, -100))
    for time, audio in network.seen:
        kept, added = mixture(settings, time)
        torch.testing.assert_close(
            audio[:2], kept * condition + added * noise().audio, atol=1e-5, rtol=0, check_dtype=False
        )


@pytest.mark.parametrize("name", ["dpm++", "unipc"])
@pytest.mark.parametrize("settings", PREDICTIONS.values(), ids=PREDICTIONS)
def test_fast_samplers_serve_every_task(name, settings):
    process, condition = noise_process(DiffusionConfig(**settings)), torch.full((2, *VIDEO), 0.2)
    result = sample_latents(Ideal(settings, STD), process, "svg", noise(), 30, sampler=name)
    for latents, start in ((result.audio, noise().audio), (result.video, noise().video)):
        torch.testing.assert_close(latents, flow(start, settings, STD).float(), atol=0.03, rtol=0)
    network = Ideal(settings, STD)
    given = sample_latents(network, process, "v2a", noise(), 30, 2.0, condition, sampler=name)
    assert torch.equal(given.video, condition)
    torch.testing.assert_close(given.audio, result.audio, atol=1e-4, rtol=0)  # this network ignores the condition
    assert len(network.seen) == 30


def test_a_sampler_that_does_not_fit_is_refused_before_the_network_runs():
    network = Ideal({}, STD)
    with pytest.raises(UserError, match="sampler: euler needs prediction=flow, not epsilon"):
        sample_latents(network, noise_process(DiffusionConfig()), "svg", noise(), 10, sampler="euler")
    assert not network.seen
    with pytest.raises(ValueError, match="a2v needs a condition: the clean latent of its audio"):
        sample_latents(network, noise_process(DiffusionConfig()), "a2v", noise(), 10)
