"""Choosing, reducing and scaling frames, against torchvision's transforms."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as torchvision

from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.extractors.frames import letterbox, scale_and_crop, take_frames
from tests.support.datasets.clip_records import of_frames, random_clip


def numbered(count: int, frame_rate: float):
    """A clip whose frame number n has the grey level n."""
    return of_frames(
        np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8), frame_rate
    )


@pytest.mark.parametrize(
    ("clip_rate", "count", "frame_rate", "taken"),
    [
        (10, 3, None, [0, 1, 2]),
        (30, 4, 10, [0, 3, 6, 9]),
        (25, 4, 10, [0, 2, 5, 7]),
        (5, 4, 10, [0, 0, 1, 1]),
        (30, None, 10, [0, 3, 6, 9]),
        (30, None, None, list(range(10))),
    ],
)
def test_frames_are_those_shown_at_the_times(clip_rate, count, frame_rate, taken) -> None:
    frames = take_frames(numbered(10, clip_rate), count, frame_rate, "I3D")

    assert frames[:, 0, 0, 0].tolist() == taken
    assert frames.dtype == torch.uint8
    assert frames.shape[1:] == (3, 2, 2)


def test_a_short_or_silent_picture_is_an_error() -> None:
    with pytest.raises(
        UserError, match=r"clip: is too short, I3D needs 16 frames at 10 frames per second, the clip has"
    ):
        take_frames(numbered(40, 30), 16, 10, "I3D")
    with pytest.raises(UserError, match="clip: has no frames, which I3D needs"):
        take_frames(of_frames(np.zeros((0, 0, 0, 3), np.uint8)), 16, None, "I3D")


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("shape", [(90, 160), (160, 90), (64, 64), (48, 48), (240, 426)])
def test_letterbox_is_torchvisions_resize_and_pad(shape, antialias) -> None:
    frames = take_frames(random_clip(2, *shape), None, None, "test")
    ratio = min(64 / shape[0], 64 / shape[1])
    inner = [int(shape[0] * ratio), int(shape[1] * ratio)]
    as_floats = torchvision.resize(frames.float(), inner, InterpolationMode.BICUBIC, antialias=antialias)
    expected = as_floats.clamp(0, 255).round().to(torch.uint8)

    boxed = letterbox(frames, 64, antialias)

    assert boxed.shape == (2, 3, 64, 64)
    top, left = (64 - inner[0]) // 2, (64 - inner[1]) // 2
    assert torch.equal(boxed[..., top : top + inner[0], left : left + inner[1]], expected)
    assert boxed.sum() == expected.sum()  # all else is black


@pytest.mark.parametrize("shape", [(90, 160), (160, 90), (64, 64), (33, 47)])
def test_scale_and_crop_is_torchvisions_resize_and_crop(shape) -> None:
    frames = take_frames(random_clip(2, *shape), None, None, "test").float()
    scale = 56 / min(shape)
    size = [int(np.ceil(round(side * scale, 9))) for side in shape]
    larger = torchvision.resize(frames, size, InterpolationMode.BILINEAR, antialias=False)
    top, left = (size[0] - 56) // 2, (size[1] - 56) // 2

    assert torch.equal(scale_and_crop(frames, 56, antialias=False), larger[..., top : top + 56, left : left + 56])
