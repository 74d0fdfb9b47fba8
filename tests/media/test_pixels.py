"""Every 8-bit level survives the way to floats and back."""

import numpy as np
import torch

from mmldm_scale.media.pixels import to_frames, to_signal


def test_every_level_comes_back():
    frames = np.arange(256, dtype=np.uint8).reshape(2, 1, 16, 8, 1).repeat(3, 4)  # (B, F, H, W, 3)
    signal = to_signal(frames)
    assert signal.shape == (2, 1, 3, 16, 8)
    assert signal.dtype == torch.float32
    assert (signal.min().item(), signal.max().item()) == (-1.0, 1.0)
    assert np.array_equal(to_frames(signal).numpy(), frames)
    assert torch.equal(to_signal(torch.from_numpy(frames)), signal)


def test_channels_stay_in_order_and_strides_do_not_matter():
    frames = np.zeros((2, 4, 6, 3), np.uint8)
    frames[..., 1] = 255
    assert to_signal(frames[:, ::-1])[:, 1].eq(1).all()
    assert to_signal(frames)[:, [0, 2]].eq(-1).all()


def test_values_beyond_the_range_are_clipped():
    signal = torch.tensor([-3.0, 3.0, 0.0]).reshape(3, 1, 1)
    assert to_frames(signal).flatten().tolist() == [0, 255, 128]
