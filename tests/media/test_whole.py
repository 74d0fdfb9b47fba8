import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mmldm_scale.media import whole
from mmldm_scale.media.clip import Clip, MediaError
from mmldm_scale.media.decode import probe
from mmldm_scale.media.encode import write_video
from mmldm_scale.media.wav import write_wav
from mmldm_scale.media.whole import read_whole


def test_what_was_written_comes_back_whole(tmp_path):
    levels = np.arange(10, 250, 15, dtype=np.uint8)  # of 16 frames
    frames = np.broadcast_to(levels[:, None, None, None], (16, 32, 48, 3))
    time = np.arange(35280) / 22050
    sound = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    write_video(tmp_path / "a.mp4", frames, 10, sound, 22050)
    clip, frame_rate, sample_rate = read_whole(tmp_path / "a.mp4")
    assert (clip.frames.shape, frame_rate, sample_rate) == ((16, 32, 48, 3), 10, 22050)
    assert np.abs(clip.frames.mean((1, 2, 3)) - levels).max() < 3  # each once, in order
    assert clip.waveform.shape == (35280,)
    assert np.corrcoef(clip.waveform, sound)[0, 1] > 0.99


def test_flash_and_beep_are_at_the_same_time_at_any_rate_and_offset(tmp_path, record, onsets):
    """Sound that begins earlier than the picture, or later, keeps its place."""
    for name, pictures, sound in (
        ("both.mkv", None, (0.0, 2.5)),
        ("sound_first.mp4", np.arange(10, 50) / 20, (0.0, 2.5)),
        ("sound_later.mov", None, (0.4, 2.5)),
        ("webm.webm", None, (0.0, 2.5)),
    ):
        codecs = {"video_codec": "libvpx", "audio_codec": "libopus", "rate": 48000} if name == "webm.webm" else {}
        path = record(tmp_path / name, pictures=pictures, sound=sound, **codecs)
        clip, frame_rate, sample_rate = read_whole(path)
        flashes, beeps = onsets(clip, frame_rate, sample_rate)
        assert len(flashes) == 3, name
        np.testing.assert_allclose(beeps, flashes, atol=0.06, err_msg=name)


def test_sound_in_a_file_of_its_own_and_alone(tmp_path, record, onsets):
    video = record(tmp_path / "a.mp4", sound=None)
    sound = record(tmp_path / "a.wav", pictures=(), audio_codec="pcm_s16le", rate=16000, layout="mono")
    silent, _, no_rate = read_whole(video)
    assert (silent.waveform.shape, no_rate) == ((0,), 0)
    clip, frame_rate, sample_rate = read_whole(video, sound)
    assert sample_rate == 16000
    flashes, beeps = onsets(clip, frame_rate, sample_rate)
    np.testing.assert_allclose(beeps, flashes, atol=0.01)
    alone, no_frame_rate, _ = read_whole(sound)
    assert (alone.frames.shape, no_frame_rate) == ((0, 0, 0, 3), 0)
    np.testing.assert_array_equal(alone.waveform, clip.waveform)
    assert abs(len(alone.waveform) / 16000 - 2.5) < 0.07


def test_pixels_are_made_square(tmp_path, record):
    path = record(tmp_path / "wide.mp4", size=(48, 64), pixel_aspect=Fraction(3, 2))
    assert read_whole(path)[0].frames.shape[1:] == (48, 96, 3)


@pytest.mark.parametrize(
    ("limit", "value", "says"),
    [
        ("MOST_SECONDS", 1.0, "too_long: .*: takes [23] s; at most 1 s are read whole"),
        ("MOST_BYTES", 100_000, r"too_large: .*: 50 frames of 64×48 pixels take 460,800 bytes; at most 100,000"),
    ],
)
def test_what_would_fill_the_memory_is_refused(tmp_path, record, monkeypatch, limit, value, says):
    path = record(tmp_path / "a.mp4")
    monkeypatch.setattr(whole, limit, value)
    with pytest.raises(MediaError, match=says):
        read_whole(path)


def test_a_damaged_file_is_told(tmp_path, record):
    path = record(tmp_path / "a.mp4", options={"movflags": "+faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(MediaError, match=f": {path}: "):
        read_whole(path)
    path.write_text("no video")
    with pytest.raises(MediaError, match="not_media"):
        read_whole(path)
    write_wav(tmp_path / "a.wav", np.zeros(0, np.float32), 8000)
    with pytest.raises(MediaError):
        read_whole(tmp_path / "a.wav")


@pytest.mark.skipif("MMLDM_TEST_MEDIA" not in os.environ, reason="MMLDM_TEST_MEDIA names no folder of real videos")
@pytest.mark.parametrize("name", ["avsync0.mp4", "v_GGSY1Qvo990.mp4"])
def test_real_videos_are_read_whole(name: str):
    path = Path(os.environ["MMLDM_TEST_MEDIA"]) / name
    info = probe(path)
    clip, frame_rate, sample_rate = read_whole(path)
    assert isinstance(clip, Clip)
    assert clip.frames.shape[1:] == (info.height, info.width, 3)
    assert abs(len(clip.frames) / frame_rate - info.seconds) < 0.1
    assert abs(len(clip.waveform) / sample_rate - info.seconds) < 0.2
    assert clip.frames.std() > 10
