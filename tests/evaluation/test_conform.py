"""Clips in the form that a protocol asks for."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pad, resize

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.rng import generator
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.conform import conform
from mmldm_scale.evaluation.protocols.protocol import FramesConfig, SoundConfig
from mmldm_scale.media.clip import Clip


def record(frames: int = 12, height: int = 30, width: int = 40, rate: float = 30.0, seconds: float = 0.4) -> ClipRecord:
    draw = generator(0, "test/conform")
    pixels = draw.integers(0, 256, (frames, height, width, 3)).astype(np.uint8)
    waveform = (0.1 * draw.standard_normal(round(seconds * 16000))).astype(np.float32)
    return ClipRecord("a", Clip(pixels, waveform), rate, 16000, {"label": "rain"})


def test_frames_are_picked_by_their_times():
    clip = record()
    every_third = conform(clip, FramesConfig(count=4, rate=10), None, "clips")
    assert np.array_equal(every_third.clip.frames, clip.clip.frames[::3])
    assert (every_third.frame_rate, every_third.info, len(every_third.clip.waveform)) == (10, {"label": "rain"}, 0)
    assert every_third.sample_rate == 0
    doubled = conform(record(frames=3, rate=5), FramesConfig(count=5, rate=10), None, "clips")
    assert np.array_equal(doubled.clip.frames, record(frames=3).clip.frames[[0, 0, 1, 1, 2]])
    assert len(conform(clip, FramesConfig(count=0), None, "clips").clip.frames) == 12
    with pytest.raises(UserError, match=r"a: has 4 frames at 10 frames/s; the protocol needs 5"):
        conform(clip, FramesConfig(count=5, rate=10), None, "clips")


@pytest.mark.parametrize("antialias", [False, True])
def test_the_letterbox_is_mm_diffusions(antialias):
    """Its loader's process_video: sides truncated, bicubic, black bars, the smaller half of them on top and left."""
    clip = record(height=33, width=50)
    inner = [int(33 * 16 / 50), 16]
    small = resize(
        torch.from_numpy(clip.clip.frames).permute(0, 3, 1, 2), inner, InterpolationMode.BICUBIC, antialias=antialias
    )
    bars = 16 - inner[0]
    expected = pad(small, [0, bars // 2, 0, bars - bars // 2]).permute(0, 2, 3, 1).numpy()
    config = FramesConfig(count=0, size=16, antialias=antialias)
    assert np.array_equal(conform(clip, config, None, "clips").clip.frames, expected)


def test_a_crop_takes_the_middle_and_a_fitting_picture_stays():
    clip = record(height=20, width=30)
    cropped = conform(clip, FramesConfig(count=0, size=20, fit="crop"), None, "clips").clip.frames
    assert np.array_equal(cropped, clip.clip.frames[:, :, 5:25])
    square = record(height=20, width=20)
    same = conform(square, FramesConfig(count=0, size=20), None, "clips").clip.frames
    assert np.array_equal(same, square.clip.frames)


def test_sound_is_cut_padded_by_little_and_passes_a_lossy_track_once():
    clip = record()
    cut = conform(clip, None, SoundConfig(seconds=0.25), "clips").clip
    assert np.array_equal(cut.waveform, clip.clip.waveform[:4000])
    assert len(cut.frames) == 0
    padded = conform(clip, None, SoundConfig(seconds=0.42), "clips").clip.waveform
    assert np.array_equal(padded, np.pad(clip.clip.waveform, (0, 320)))
    lossy = conform(clip, None, SoundConfig(track="aac"), "clips").clip.waveform
    assert len(lossy) == 6400
    assert not np.array_equal(lossy, clip.clip.waveform)
    assert np.array_equal(conform(clip, None, SoundConfig(track="aac"), "videos").clip.waveform, clip.clip.waveform)
    with pytest.raises(UserError, match=r"a: has 0.40 s of sound; the protocol needs 0.6 s"):
        conform(clip, None, SoundConfig(seconds=0.6), "clips")


def test_a_missing_signal_is_named():
    silent = record(seconds=0)
    with pytest.raises(UserError, match="a: has no sound"):
        conform(silent, None, SoundConfig(), "clips")
    with pytest.raises(UserError, match="a: has no frames"):
        conform(record(frames=0), FramesConfig(), None, "clips")
