"""The contrastive loss, held against four passes of the network and sums written here."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import ContrastiveConfig, DiffusionConfig
from mmldm_scale.diffusion.contrastive import wrong_pairings
from mmldm_scale.diffusion.loss import losses
from mmldm_scale.diffusion.noise_process import noise_process

AUDIO, VIDEO, SIZE = (3, 2, 4), (3, 2, 2), 5
CONTRASTIVE = ContrastiveConfig(weight=0.3, temperature=0.2)


def batch() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = {"audio": AUDIO, "audio_noise": AUDIO, "other_audio": AUDIO, "displaced_audio": AUDIO}
    shapes |= {"video": VIDEO, "video_noise": VIDEO, "other_video": VIDEO}
    return {
        **{name: torch.randn(SIZE, *shape, generator=random) for name, shape in shapes.items()},
        "displaced_given": torch.tensor([True, True, False, True, False]),
        "time": torch.tensor([5, 200, 500, 800, 999]),
        "audio_given": torch.tensor([False, True, False, False, True]),
        "video_given": torch.tensor([True, False, False, True, False]),
    }


class Mixing(nn.Module):
    """In place of the DiT: each prediction depends on all that goes in."""

    def forward(self, audio: Tensor, video: Tensor, time: Tensor, **conditions: Tensor) -> tuple[Tensor, Tensor]:
        a, v = (x.mean(dim=(1, 2, 3), keepdim=True) for x in (audio, video))
        given = [c.mean(dim=(1, 2, 3), keepdim=True) for c in conditions.values()]
        assert len(given) == 2
        shared = a - 2 * v + 3 * given[0] - given[1] + time.view(-1, 1, 1, 1) / 1000
        return 0.5 * audio + shared, 0.2 * video - shared


def passes(data: dict[str, Tensor], settings: DiffusionConfig) -> list[dict[str, np.ndarray]]:
    """Errors for audio and video of the four pairings of each sample, each passed alone."""
    process, found = noise_process(settings), []
    for audio, video in (
        ("audio", "video"),
        ("other_audio", "video"),
        ("displaced_audio", "video"),
        ("audio", "other_video"),
    ):
        rows = []
        for i in range(SIZE):
            time, clean = data["time"][i : i + 1], {"audio": data[audio][i : i + 1], "video": data[video][i : i + 1]}
            noises = {name: data[f"{name}_noise"][i : i + 1] for name in clean}
            noisy = [process.corrupt(clean[name], noises[name], time) for name in clean]
            given = {f"{name}_condition": clean[name] * data[f"{name}_given"][i] for name in clean}
            predicted = Mixing()(*noisy, time, **given)
            targets = [process.target(clean[name], noises[name], time) for name in clean]
            rows.append([(p - t).square().mean().item() for p, t in zip(predicted, targets, strict=True)])
        found.append(dict(zip(("audio", "video"), np.array(rows).T, strict=True)))
    return found


@pytest.mark.parametrize("settings", [{}, {"min_snr": 5.0}, {"prediction": "flow"}])
def test_the_term_is_a_cross_entropy_over_pairings(settings):
    settings, data = DiffusionConfig(**settings), batch()
    plain = {name: value for name, value in data.items() if "other" not in name and "displaced" not in name}
    without = losses(Mixing(), noise_process(settings), plain)
    result = losses(Mixing(), noise_process(settings), data, CONTRASTIVE)
    true, other_audio, displaced, other_video = passes(data, settings)
    displaced["video"] = np.where(data["displaced_given"], displaced["video"], np.inf)

    def entropy(right: np.ndarray, *wrong: np.ndarray) -> np.ndarray:
        return right / 0.2 + np.log(sum(np.exp(-error / 0.2) for error in (right, *wrong)))

    by_video = entropy(true["video"], other_audio["video"], displaced["video"])
    by_audio = entropy(true["audio"], other_video["audio"])
    np.testing.assert_allclose(result["term/contrastive"].numpy(), (by_video + by_audio) / 2, rtol=1e-4, atol=1e-5)
    for name in ("loss/audio", "loss/video"):
        assert torch.equal(result[name], without[name])
    torch.testing.assert_close(result["loss"], without["loss"] + 0.3 * result["term/contrastive"])
    off = losses(Mixing(), noise_process(settings), plain, ContrastiveConfig())
    assert off.keys() == without.keys()
    assert torch.equal(off["loss"], without["loss"])


class Listening(nn.Module):
    """Predicts noise of zeros, but that of a video wrongly, wherever the clean audio given is not ``known``."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.known = known

    def forward(self, audio: Tensor, video: Tensor, time: Tensor, **conditions: Tensor) -> tuple[Tensor, Tensor]:
        known = self.known.repeat(len(audio) // len(self.known), 1, 1, 1)
        wrong = (conditions["audio_condition"] != known).flatten(1).any(dim=1).view(-1, 1, 1, 1)
        return torch.zeros_like(audio), 10 * wrong * torch.ones_like(video)


def test_who_hears_what_belongs_together_has_no_loss_and_who_does_not_that_of_guessing():
    data = batch() | {"audio_given": torch.ones(SIZE, dtype=torch.bool)}
    data |= {f"{name}_noise": torch.zeros_like(data[name]) for name in ("audio", "video")}
    hearing, deaf = (
        losses(Listening(known), noise_process(DiffusionConfig()), data, CONTRASTIVE)["term/contrastive"]
        for known in (data["audio"], torch.zeros_like(data["audio"]))
    )
    torch.testing.assert_close(hearing, torch.full((SIZE,), np.log(2) / 2))  # the audio's half can only be guessed
    pairings = torch.where(data["displaced_given"], 3.0, 2.0)
    torch.testing.assert_close(deaf, (pairings.log() + np.log(2)) / 2)


class Scaled(Mixing):
    """A network that can learn one factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, audio: Tensor, video: Tensor, time: Tensor, **conditions: Tensor) -> tuple[Tensor, Tensor]:
        audio, video = super().forward(audio, video, time, **conditions)
        return self.scale * audio, self.scale * video


def test_an_absent_window_has_no_effect_on_loss_and_gradients():
    """Whatever stands in its place."""
    data, absent = batch(), ~batch()["displaced_given"]
    results = []
    for value in (0.0, 50.0):
        audio = torch.where(absent[:, None, None, None], value, data["displaced_audio"])
        network = Scaled()
        result = losses(network, noise_process(DiffusionConfig()), data | {"displaced_audio": audio}, CONTRASTIVE)
        result["loss"].sum().backward()
        results.append((result["loss"].detach(), network.scale.grad))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert results[0][1].isfinite()


def test_wrong_pairings_exchange_one_latent_and_leave_all_else():
    data = batch() | {"label": torch.arange(SIZE)}
    pairings = [{name: value.chunk(3)[number] for name, value in wrong_pairings(data).items()} for number in range(3)]
    for pairing, exchanged in zip(pairings, ("other_audio", "displaced_audio", "other_video"), strict=True):
        expected = {n: v for n, v in data.items() if n not in ("other_audio", "displaced_audio", "other_video")}
        expected[exchanged.partition("_")[2]] = data[exchanged]
        assert pairing.keys() == expected.keys()
        assert all(torch.equal(pairing[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("settings", "key"), [({"weight": -1.0}, "weight"), ({"temperature": 0.0}, "temperature")])
def test_what_cannot_be_is_refused(settings, key):
    with pytest.raises(UserError, match=f"contrastive.{key}: .*: must"):
        ContrastiveConfig(**settings)
