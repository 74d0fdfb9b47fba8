"""From a file to measures: what is put into a video is what is measured of it."""

from pathlib import Path

import numpy as np
import pytest

from data_tools.filters.low_res_view import low_res_view
from data_tools.filters.measure_candidate import measures
from data_tools.filters.onsets import agreement
from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.encode import write_video

RATE = 16000


def scene(seconds: float, fps: int = 20, height: int = 96, width: int = 128) -> np.ndarray:
    """Return (F, H, W, 3) of stripes that move."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    frames = [128 + 60 * np.sin((x + 2 * i) / 7) * np.cos(y / 9) for i in range(round(seconds * fps))]
    return np.stack(frames)[..., None].repeat(3, -1).astype(np.uint8)


def tone(seconds: float, amplitude: float = 0.2) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def test_a_video_with_known_faults(tmp_path):
    """4 s: one of them black, one frozen, a cut at 3 s, bars above and below; the last second silent."""
    frames = scene(4.0)
    frames[20:40] = frames[20]  # frozen from 1 s to 2 s
    frames[40:60] = 0  # black from 2 s to 3 s
    frames[60:] = 255 - frames[60:]
    frames[:, :12] = frames[:, -12:] = 0  # a quarter of the height
    sound = tone(4.0)
    sound[3 * RATE :] = 0
    write_video(tmp_path / "a.mp4", frames, 20, sound, RATE)
    found = measures(low_res_view(tmp_path / "a.mp4", 0.0, 4.0, RATE))
    assert found["black_fraction"] == pytest.approx(0.25, abs=0.03)
    assert found["frozen_fraction"] == pytest.approx(0.5, abs=0.06)  # the black second stands still too
    assert found["cuts_per_minute"] == pytest.approx(30.0)  # to black and from it
    assert found["letterbox"] == pytest.approx(0.25, abs=0.02)
    assert found["silent_fraction"] == pytest.approx(0.25, abs=0.03)
    assert found["loudness"] == pytest.approx(-14.6, abs=0.7)  # 0.2 is -14 dB; K-weighting takes 0.6 dB at 440 Hz
    assert found["clipped_fraction"] == 0.0
    assert len(found["hash"]) == 32


def test_flash_and_beep_of_a_file(tmp_path):
    """Beeps 0.2 s after their flashes, through encoder, container and decoder."""
    frames, sound = scene(6.0), 0.001 * tone(6.0)
    for time in (0.9, 2.0, 3.4, 4.5):
        first = round(time * 20)
        frames[first : first + 3] = 250
        start = round((time + 0.2) * RATE)
        sound[start : start + 1600] = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(1600) / RATE)
    write_video(tmp_path / "a.mp4", frames, 20, sound, RATE)
    assert agreement(low_res_view(tmp_path / "a.mp4", 0.0, 6.0, RATE)).offset == pytest.approx(0.2, abs=0.06)


def test_stretches_pieces_and_seams(tmp_path):
    frames = scene(32.0, fps=10, height=32, width=32)
    frames[:] = np.arange(320)[:, None, None, None] // 2  # each level lasts 0.2 s
    write_video(tmp_path / "a.mp4", frames, 10, tone(32.0), RATE)

    def levels(begin: float, end: float, seconds: float) -> tuple[np.ndarray, tuple[int, ...], int]:
        view = low_res_view(tmp_path / "a.mp4", begin, end, RATE, seconds)
        assert len(view.details) == -(-len(view.pictures) // 5)
        assert np.array_equal(view.details[:, 100, 100], view.pictures[::5, 50, 50])
        return view.pictures[:, 50, 50].astype(int), view.seams, len(view.sound)

    shown, seams, samples = levels(3.0, 28.0, 60.0)  # three pieces without a seam
    assert len(shown) == 249
    assert np.abs(shown - (30 + np.arange(249)) // 2).max() <= 3
    assert (seams, samples) == ((), 249 * RATE // 10)
    shown, seams, samples = levels(0.0, 32.0, 20.0)  # the first ten seconds and the last
    assert seams == (100,)
    assert np.abs(shown - np.concatenate([np.arange(100), 220 + np.arange(100)]) // 2).max() <= 3
    assert samples == 20 * RATE


def test_too_short_or_without_sound(tmp_path):
    write_video(tmp_path / "a.mp4", scene(2.0), 20, tone(2.0), RATE)
    write_video(tmp_path / "mute.mp4", scene(2.0), 20)
    with pytest.raises(MediaError, match="too_short"):
        low_res_view(tmp_path / "a.mp4", 1.0, 1.3, RATE)
    with pytest.raises(MediaError, match="no_audio_stream"):
        low_res_view(tmp_path / "mute.mp4", 0.0, 2.0, RATE)


def test_the_sound_of_another_file(tmp_path):
    write_video(tmp_path / "mute.mp4", scene(2.0), 20)
    write_video(tmp_path / "music.mp4", scene(2.0), 20, tone(2.0), RATE)
    view = low_res_view(tmp_path / "mute.mp4", 0.0, 2.0, RATE, sound=Path(tmp_path / "music.mp4"))
    assert np.abs(view.sound).max() > 0.15
