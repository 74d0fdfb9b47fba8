"""Average velocities: their targets and their sampling, held against flows that are known in closed form."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DiffusionConfig, DiTConfig, load
from mmldm_scale.diffusion import mean_flow
from mmldm_scale.diffusion.guided_sampling import Latents, sample_latents
from mmldm_scale.diffusion.loss import draw, losses
from mmldm_scale.diffusion.noise_process import MeanFlow, RectifiedFlow, noise_process
from mmldm_scale.diffusion.samplers import get_sampler
from mmldm_scale.models.dit import DiT
from mmldm_scale.models.flop_counter import flops_of
from mmldm_scale.models.flops import dit_macs
from mmldm_scale.trainables.dit.config import DiTTraining

CONFIG = DiffusionConfig(prediction="flow", mean_flow=0.5)
LENGTH, AUDIO, VIDEO = CONFIG.steps, (4, 2, 2), (4, 3, 3)
TINY = DiTConfig(depth=2, width=16, heads=2, context_tokens=2, context_width=8, average_velocity=True)
DEVIATION = 0.3  # of the Gaussian data of the flow in closed form


def spread(share: Tensor) -> Tensor:
    """Return the standard deviation of the mixture (1 − s) z + s n at s = ``share``."""
    return ((1 - share).square() * DEVIATION**2 + share.square()).sqrt()


class GaussianFlow:
    """The exact average velocities for latents of N(0, DEVIATION²): the flow scales them with their deviation."""

    def __call__(self, audio: Tensor, video: Tensor, time: Tensor, *, span: Tensor | None = None, **_: Tensor):
        end = ((time + 1) / LENGTH).view(-1, 1, 1, 1)
        past = torch.zeros_like(time) if span is None else span
        past = past.float().clamp(min=0.1)  # 0.1: nearly at an instant
        start = end - (past / LENGTH).view(-1, 1, 1, 1)
        factor = (1 - spread(start) / spread(end)) / (end - start)
        return audio * factor, video * factor


def test_the_exact_average_velocity_is_its_own_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the flow's velocity, and in the limit of a small step; with the step that is taken, nearly."""
    random = torch.Generator().manual_seed(0)
    time, interval = torch.tensor([999, 700, 400, 9]), torch.tensor([1.0, 0.5, 0.9, 1.0])
    share = ((time + 1) / LENGTH).view(-1, 1, 1, 1)
    noisy = {name: torch.randn(4, *shape, generator=random) for name, shape in (("audio", AUDIO), ("video", VIDEO))}
    slope = (share - (1 - share) * DEVIATION**2) / spread(share).square()  # velocity of the flow = slope · z
    velocity = {name: slope * z for name, z in noisy.items()}
    span = mean_flow.span({"time": time, "interval": interval})
    assert span.tolist() == pytest.approx([1000, 350.5, 360.9, 10])
    predicted = dict(zip(noisy, GaussianFlow()(*noisy.values(), time, span=span), strict=True))
    assert max(float((velocity[name] - predicted[name]).abs().max()) for name in noisy) > 0.3
    for step, bound in ((1e-3, 5e-3), (mean_flow.STEP, 0.15)):
        monkeypatch.setattr(mean_flow, "STEP", step)
        targets = mean_flow.targets(GaussianFlow(), predicted, velocity, noisy, time, LENGTH, {"span": span})
        for name, target in targets.items():
            torch.testing.assert_close(target, predicted[name], rtol=bound, atol=bound)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_exact_average_velocity_leads_to_the_end_in_any_number_of_steps(steps: int) -> None:
    noise = Latents(torch.randn(2, *AUDIO), torch.randn(2, *VIDEO))
    process = noise_process(CONFIG)
    made = sample_latents(GaussianFlow(), process, "svg", noise, steps)
    torch.testing.assert_close(made.audio, DEVIATION * noise.audio, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.video, DEVIATION * noise.video, rtol=1e-4, atol=1e-5)
    at_instants = sample_latents(GaussianFlow(), process, "svg", noise, steps, sampler="euler")
    assert (at_instants.audio - DEVIATION * noise.audio).abs().max() > 0.05


def test_it_is_the_sampler_of_such_models_alone() -> None:
    process = noise_process(CONFIG)
    assert isinstance(process, MeanFlow)
    assert get_sampler("auto", process, 4).name == "mean_flow"
    plain = noise_process(dataclasses.replace(CONFIG, mean_flow=0.0))
    assert type(plain) is RectifiedFlow
    assert get_sampler("auto", plain, 4).name == "euler"
    with pytest.raises(UserError, match="mean_flow needs prediction=flow with mean_flow above 0, not flow"):
        get_sampler("mean_flow", plain, 4)


def batch(time: Tensor, interval: Tensor, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    latents = {name: torch.randn(len(time), *shape, generator=random) for name, shape in SHAPES.items()}
    given = {f"{name}_given": torch.zeros(len(time), dtype=torch.bool) for name in ("audio", "video")}
    return {**latents, **given, "time": time, "interval": interval}


SHAPES = {"audio": AUDIO, "video": VIDEO, "audio_noise": AUDIO, "video_noise": VIDEO}


def opened(config: DiTConfig = TINY) -> DiT:
    torch.manual_seed(0)
    model = DiT(config, AUDIO, VIDEO)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_at_an_instant_it_learns_the_velocity_and_errors_have_equal_say() -> None:
    model, process = opened(), noise_process(CONFIG)
    instants = batch(torch.tensor([800, 300]), torch.zeros(2))
    found = losses(model, process, instants)
    flow = noise_process(dataclasses.replace(CONFIG, mean_flow=0.0))
    plain = losses(model, flow, {name: value for name, value in instants.items() if name != "interval"})
    torch.testing.assert_close(found["loss/video"], plain["loss/video"])
    torch.testing.assert_close(found["loss"], plain["loss"] / (plain["loss"] + mean_flow.ADAPTIVE))
    found["loss"].sum().backward()
    assert model.span[2].weight.grad.any()


def test_it_begins_with_the_weights_of_a_flow() -> None:
    torch.manual_seed(0)
    model = DiT(TINY, AUDIO, VIDEO)
    flow = DiT(dataclasses.replace(TINY, average_velocity=False), AUDIO, VIDEO)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    missing = model.load_state_dict(flow.state_dict(), strict=False)
    assert {name.split(".")[0] for name in missing.missing_keys} == {"span"}
    inputs = torch.randn(2, *AUDIO), torch.randn(2, *VIDEO), torch.tensor([5, 700])
    for made, expected in zip(model(*inputs, span=torch.tensor([3.0, 700.0])), flow(*inputs), strict=True):
        assert torch.equal(made, expected)
    with pytest.raises(ValueError, match="span needs model.average_velocity=true"):
        flow(*inputs, span=torch.zeros(2))
    linear = dit_macs(TINY, AUDIO, VIDEO)
    assert flops_of(lambda: model(*(x[:1] for x in inputs))) // 2 == linear.linear + linear.attention


def test_a_share_of_the_draws_has_an_interval_and_the_others_are_as_before() -> None:
    plain = dataclasses.replace(CONFIG, mean_flow=0.0)
    draws = [(draw(CONFIG, AUDIO, VIDEO, 3, i), draw(plain, AUDIO, VIDEO, 3, i)) for i in range(400)]
    intervals = np.array([one.interval for one, _ in draws])
    assert 0.4 < (intervals > 0).mean() < 0.6
    assert intervals.max() <= 1
    assert 0.3 < intervals[intervals > 0].mean() < 0.8
    for one, other in draws:
        assert one.time == other.time if one.interval == 0 else one.time >= other.time
        assert np.array_equal(one.audio_noise, other.audio_noise)
    assert mean_flow.draw_interval(7, 0) == (7, 1.0)
    assert mean_flow.draw_interval(3, 9) == (9, 0.7)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["diffusion.mean_flow=0.5"], "diffusion.mean_flow: 0.5: needs prediction=flow, not epsilon"),
        (["diffusion.mean_flow=2", "diffusion.prediction=flow"], "diffusion.mean_flow: 2: must lie in 0..1"),
        (["model.average_velocity=true"], "model.average_velocity: true: must be false with diffusion.mean_flow=0"),
        (["FLOW"], "model.average_velocity: false: must be true with diffusion.mean_flow=0.5"),
        (["FLOW", "model.average_velocity=true", "contrastive.weight=1"], "contrastive.weight: 1: must be 0"),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    flow = ["diffusion.prediction=flow", "diffusion.mean_flow=0.5"]
    given = [word for override in overrides for word in (flow if override == "FLOW" else [override])]
    with pytest.raises(UserError, match=message) as error:
        load(DiTTraining, [], ["shards=x", *given])
    assert "\n" not in str(error.value)
