import pytest

from data_tools.config import Preparation
from data_tools.stages.clip_plan import window_starts
from mmldm_scale.config import MediaConfig


def preparation(**values):
    return Preparation(media=MediaConfig(frames=16, fps=10), **values)


@pytest.mark.parametrize(
    ("seconds", "stride", "limit", "starts"),
    [
        (1.6, 16, 0, [0]),
        (1.55, 16, 0, [0]),  # within what decoding bridges at a file's end
        (1.4, 16, 0, []),
        (0.0, 16, 0, []),
        (4.8, 16, 0, [0, 16, 32]),
        (2.0, 1, 0, [0, 1, 2, 3, 4, 5]),
        (10.0, 16, 2, [0, 48]),
        (10.0, 8, 100, [0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80]),
    ],
)
def test_windows_of_a_video(seconds, stride, limit, starts):
    assert window_starts(seconds, preparation(stride=stride, max_clips_per_video=limit)) == starts
