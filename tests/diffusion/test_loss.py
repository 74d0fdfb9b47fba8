from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmldm_scale.config import DiffusionConfig, DiTConfig, LossWeights
from mmldm_scale.diffusion.loss import draw, losses
from mmldm_scale.diffusion.noise_process import noise_process
from mmldm_scale.models.dit import DiT

AUDIO, VIDEO = (4, 2, 2), (4, 3, 3)
CONFIG = DiffusionConfig()


def batch(size: int) -> dict[str, Tensor]:
    draws = [
        draw(DiffusionConfig(audio_conditioned=0.4, video_conditioned=0.4), AUDIO, VIDEO, 7, i) for i in range(size)
    ]
    random = torch.Generator().manual_seed(0)
    return {
        "audio": torch.randn(size, *AUDIO, generator=random),
        "video": torch.randn(size, *VIDEO, generator=random),
        "audio_noise": torch.from_numpy(np.stack([d.audio_noise for d in draws])),
        "video_noise": torch.from_numpy(np.stack([d.video_noise for d in draws])),
        "time": torch.tensor([d.time for d in draws]),
        "audio_given": torch.tensor([d.audio_given for d in draws]),
        "video_given": torch.tensor([d.video_given for d in draws]),
    }


class Recorder(nn.Module):
    """In place of the DiT: keeps what it is given, and predicts noise of ones."""

    def forward(self, audio: Tensor, video: Tensor, time: Tensor, **conditions: Tensor) -> tuple[Tensor, Tensor]:
        self.given, self.conditions = (audio, video, time), conditions
        return torch.ones_like(audio), torch.ones_like(video)


def test_a_draw_is_a_function_of_seed_and_position():
    one, same = (draw(CONFIG, AUDIO, VIDEO, 3, 41) for _ in range(2))
    assert one.time == same.time
    assert np.array_equal(one.audio_noise, same.audio_noise)
    assert np.array_equal(one.video_noise, same.video_noise)
    for other in (draw(CONFIG, AUDIO, VIDEO, 3, 42), draw(CONFIG, AUDIO, VIDEO, 4, 41)):
        assert not np.array_equal(one.audio_noise, other.audio_noise)


def test_tasks_have_their_shares_and_timesteps_and_noise_their_distributions():
    draws = [draw(CONFIG, AUDIO, VIDEO, 0, i) for i in range(4000)]
    tasks = Counter((d.audio_given, d.video_given) for d in draws)
    assert tasks[True, True] == 0
    for task in ((True, False), (False, True)):
        assert abs(tasks[task] / 4000 - 0.05) < 0.015
    times = np.array([d.time for d in draws])
    assert times.min() < 5
    assert times.max() > 994
    assert times.max() < 1000
    assert abs(times.mean() - 499.5) < 20
    noise = np.concatenate([d.video_noise.ravel() for d in draws])
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_logit_normal_timesteps_have_a_standard_normal_logit():
    config = DiffusionConfig(prediction="flow", time_distribution="logit_normal")
    times = np.array([draw(config, (1, 1, 1), (1, 1, 1), 0, i).time for i in range(4000)])
    assert times.min() >= 0
    assert times.max() <= 999
    share = (times + 0.5) / 1000
    logit = np.log(share / (1 - share))
    assert abs(logit.mean()) < 0.06
    assert abs(logit.std() - 1) < 0.04


def test_the_network_gets_noisy_latents_and_only_the_conditions_drawn():
    data, network = batch(30), Recorder()
    assert {(bool(a), bool(v)) for a, v in zip(data["audio_given"], data["video_given"], strict=True)} == {
        (False, False),
        (True, False),
        (False, True),
    }
    result = losses(network, noise_process(CONFIG), data)
    audio, video, time = network.given
    betas = np.linspace(0.00085**0.5, 0.0120**0.5, 1000) ** 2
    a = np.cumprod(1 - betas)[data["time"].numpy()].reshape(-1, 1, 1, 1)
    for noisy, name in ((audio, "audio"), (video, "video")):
        expected = np.sqrt(a) * data[name].numpy() + np.sqrt(1 - a) * data[f"{name}_noise"].numpy()
        np.testing.assert_allclose(noisy.numpy(), expected, atol=1e-5)
        by_hand = ((1 - data[f"{name}_noise"].numpy()) ** 2).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(result[f"loss/{name}"].numpy(), by_hand, rtol=1e-5)
    assert torch.equal(time, data["time"])
    assert network.conditions.keys() == {"audio_condition", "video_condition"}
    for name in ("audio", "video"):
        for i, given in enumerate(data[f"{name}_given"]):
            expected = data[name][i] if given else torch.zeros_like(data[name][i])
            assert torch.equal(network.conditions[f"{name}_condition"][i], expected)
    torch.testing.assert_close(result["loss"], (result["loss/audio"] + result["loss/video"]) / 2)


def test_the_modalities_count_by_their_weights():
    data, process = batch(30), noise_process(CONFIG)
    plain, weighted = (losses(Recorder(), process, data, None, weights) for weights in (None, LossWeights(0.5, 3.0)))
    audio, video = plain["loss/audio"], plain["loss/video"]
    torch.testing.assert_close(plain["loss"], (audio + video) / 2)
    torch.testing.assert_close(weighted["loss"], 0.25 * audio + 1.5 * video)
    assert torch.equal(weighted["loss/audio"], audio)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_weights_act_on_what_is_minimised_alone(prediction):
    data = batch(30)
    plain, weighted = (
        losses(Recorder(), noise_process(DiffusionConfig(prediction=prediction, min_snr=gamma)), data)
        for gamma in (0.0, 5.0)
    )
    for name in ("loss/audio", "loss/video"):
        assert torch.equal(plain[name], weighted[name])
    a = np.cumprod(1 - np.linspace(0.00085**0.5, 0.0120**0.5, 1000) ** 2)[data["time"].numpy()]
    snr = a / (1 - a)
    weight = np.minimum(snr, 5) / (snr if prediction == "epsilon" else snr + 1)
    np.testing.assert_allclose(weighted["loss"].numpy(), weight * plain["loss"].numpy(), rtol=1e-3)


def test_a_samples_loss_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    dit = DiT(DiTConfig(depth=2, width=32, heads=2, context_tokens=2, context_width=4), AUDIO, VIDEO).double()
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.2)
    data = batch(6)
    together = losses(dit, noise_process(CONFIG), data)
    for i in range(6):
        alone = losses(dit, noise_process(CONFIG), {name: value[i : i + 1] for name, value in data.items()})
        for name in together:
            torch.testing.assert_close(together[name][i : i + 1], alone[name], rtol=1e-5, atol=1e-6)
