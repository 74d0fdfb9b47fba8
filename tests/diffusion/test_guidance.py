"""Guidance with a toy network, against its equations in float64 and against the branches that each pass should hold."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mmldm_scale.config import DiffusionConfig
from mmldm_scale.diffusion.guided_sampling import Latents, sample_latents
from mmldm_scale.diffusion.noise_process import noise_process

STEPS, SCALES = 4, {"audio": 1.5, "video": 3.0}
NOISE = Latents(*torch.randn(2, 3, 2, 2, 2, generator=torch.Generator().manual_seed(1)))
GIVEN = torch.full((3, 2, 2, 2), 0.4)
LABEL = {"label": torch.tensor([4, 0, 2])}
PREVIOUS = {"video": torch.full((3, 2, 2, 2), -0.7)}
EVERYWHERE = (0.0, 1.0)


def velocity(z, modality: str, media, label):
    """Return what the toy network predicts: condition and class act together, so that no branch stands for another."""
    return 0.3 * z + {"audio": 1.0, "video": 2.0}[modality] * (np.sin(media) + 0.5 * label + 0.7 * media * label)


class Toy:
    """In place of the DiT; it counts the samples of each pass."""

    def __init__(self) -> None:
        self.passes: list[int] = []

    def __call__(self, audio: Tensor, video: Tensor, time: Tensor, **conditions: Tensor) -> tuple[Tensor, Tensor]:
        self.passes.append(len(audio))
        label = (conditions.pop("label", torch.full((len(audio),), -1)) + 1).double().view(-1, 1, 1, 1).numpy()
        media = sum(latent.double().mean(dim=(1, 2, 3), keepdim=True).numpy() for latent in conditions.values())
        parts = (velocity(z.double().numpy(), name, media, label) for z, name in ((audio, "audio"), (video, "video")))
        first, second = (torch.from_numpy(part).float() for part in parts)
        return first, second


def expected(modality: str, media: float, label, scale: float, context: float, interval) -> np.ndarray:
    """Return the latents by Euler's method and Eq. 3 of arXiv 2211.09800 inside ``interval``."""
    z = getattr(NOISE, modality).double().numpy()
    for step in range(STEPS):
        share = 1 - step / STEPS
        nothing, some, everything = (velocity(z, modality, *seen) for seen in ((0, 0), (media, 0), (media, label)))
        if interval[0] < share <= interval[1]:
            z = z - (nothing + scale * (some - nothing) + context * (everything - some)) / STEPS
        else:
            z = z - everything / STEPS
    return z


@pytest.mark.parametrize(
    ("given", "previous", "classes", "context", "interval", "branches"),
    [
        ("a2v", None, LABEL, 5.0, EVERYWHERE, [3, 3, 3, 3]),
        ("a2v", PREVIOUS, LABEL, 0.5, EVERYWHERE, [3, 3, 3, 3]),
        ("svg", PREVIOUS, LABEL, 2.0, EVERYWHERE, [3, 3, 3, 3]),
        ("svg", PREVIOUS, LABEL, None, EVERYWHERE, [2, 2, 2, 2]),
        ("svg", None, LABEL, 4.0, EVERYWHERE, [2, 2, 2, 2]),  # the class alone
        ("svg", PREVIOUS, None, 4.0, EVERYWHERE, [2, 2, 2, 2]),  # no class: its scale has no effect
        ("svg", None, None, 4.0, EVERYWHERE, [1, 1, 1, 1]),
        ("a2v", None, LABEL, 5.0, (0.25, 0.75), [1, 3, 3, 1]),  # shares 1, 0.75, 0.5, 0.25
        ("svg", PREVIOUS, LABEL, None, (0.5, 1.0), [2, 2, 1, 1]),
    ],
)
def test_condition_and_class_are_guided_apart_inside_the_interval(
    given, previous, classes, context, interval, branches
):
    network, process = Toy(), noise_process(DiffusionConfig(prediction="flow"))
    condition = GIVEN if given == "a2v" else None
    made = sample_latents(
        network, process, given, NOISE, STEPS, SCALES, condition, classes, previous,
        class_guidance=context, guidance_interval=interval,
    )  # fmt: skip
    media = (0.4 if given == "a2v" else 0.0) + (-0.7 if previous else 0.0)
    label = (LABEL["label"] + 1).double().view(-1, 1, 1, 1).numpy() if classes else 0
    for name in ("video",) if given == "a2v" else ("audio", "video"):
        scale = SCALES[name]
        wanted = expected(name, media, label, scale, scale if context is None else context, interval)
        np.testing.assert_allclose(getattr(made, name).numpy(), wanted, rtol=1e-4, atol=1e-4)
    assert network.passes == [3 * count for count in branches]


@pytest.mark.parametrize(
    ("scale", "context", "branches"),
    [(1.0, None, 1), (1.0, 1.0, 1), (1.0, 3.0, 2), (3.0, 3.0, 2), (3.0, 0.0, 2), (0.0, 0.0, 1), (0.0, 2.0, 3)],
)
def test_branches_without_weight_are_not_computed(scale, context, branches):
    network, process = Toy(), noise_process(DiffusionConfig(prediction="flow"))
    made = sample_latents(network, process, "a2v", NOISE, STEPS, scale, GIVEN, LABEL, class_guidance=context)
    label = (LABEL["label"] + 1).double().view(-1, 1, 1, 1).numpy()
    wanted = expected("video", 0.4, label, scale, scale if context is None else context, EVERYWHERE)
    np.testing.assert_allclose(made.video.numpy(), wanted, rtol=1e-4, atol=1e-4)
    assert network.passes == [3 * branches] * STEPS
