"""What is written plays back: same pictures, same sound, in step, the same bytes each time."""

import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media import encode
from mmldm_scale.media.decode import probe, read_clips
from mmldm_scale.media.encode import write_video

HITS = (0.0, 0.5, 1.2)


def flash_and_beep(fps: float, rate: int, seconds: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    frames = np.full((round(seconds * fps), 48, 64, 3), 30, np.uint8)
    waveform = np.zeros(round(seconds * rate), np.float32)
    times = np.arange(rate // 20) / rate
    for hit in HITS:
        frames[round(hit * fps)] = 255
        first = round(hit * rate)
        waveform[first : first + len(times)] = 0.8 * np.sin(2 * np.pi * 1000 * times) * np.exp(-times / 0.01)
    return frames, waveform


def boxes(data: bytes, *path: str) -> list[bytes]:
    """Return the contents of the MP4 boxes at ``path``."""
    found, position = [], 0
    while position + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[position : position + 8])
        if kind.decode("latin1") == path[0]:
            content = data[position + 8 : position + size]
            found += boxes(content, *path[1:]) if len(path) > 1 else [content]
        position += max(8, size)
    return found


@pytest.mark.parametrize(("fps", "rate"), [(10, 16000), (20, 44100), (30000 / 1001, 22050), (4, 48000)])
def test_sound_and_picture_start_together(tmp_path, fps, rate):
    frames, waveform = flash_and_beep(fps, rate)
    write_video(tmp_path / "a.mp4", frames, fps, waveform, rate)
    media = MediaConfig(frames=len(frames), fps=fps, size=48, audio=AudioImageConfig(sample_rate=rate, f_max=rate / 2))
    assert probe(tmp_path / "a.mp4").seconds == pytest.approx(2.0, abs=0.002)
    (clip,) = read_clips(tmp_path / "a.mp4", [0.0], media)
    assert np.flatnonzero(clip.frames.mean((1, 2, 3)) > 140).tolist() == [round(hit * fps) for hit in HITS]
    heard = clip.waveform[: len(waveform)]
    written = waveform[: len(heard)]
    lags = range(-2000, 2001)
    spectrum = np.fft.rfft(heard, 1 << 18) * np.conj(np.fft.rfft(written, 1 << 18))
    correlation = np.fft.irfft(spectrum)
    assert max(lags, key=lambda lag: correlation[lag]) == 0  # not a single sample of delay
    assert np.abs(heard - written).max() < 0.08


def test_priming_is_taken_back_by_the_edit_list(tmp_path):
    write_video(tmp_path / "a.mp4", *flash_and_beep(10, 16000)[:1], 10, flash_and_beep(10, 16000)[1], 16000)
    picture, sound = boxes((tmp_path / "a.mp4").read_bytes(), "moov", "trak", "edts", "elst")
    _, count, length, media_time = struct.unpack(">IIIi", sound[:16])
    assert (count, length, media_time) == (1, 2000, 1024)  # 2 s in ms; the AAC encoder's priming in samples
    assert struct.unpack(">IIIi", picture[:16])[1:3] == (1, 2000)


def test_same_input_same_bytes_and_nothing_private_in_them(tmp_path):
    frames, waveform = flash_and_beep(20, 44100)
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, frames, 20, waveform, 44100)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.mp4", "b.mp4"))
    assert first == second
    assert b"Lavf" not in first
    assert struct.unpack(">II", boxes(first, "moov", "mvhd")[0][4:12]) == (0, 0)  # created, modified
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "b.mp4"]


def test_odd_sizes_and_no_sound(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 1, 1, 3), np.uint8).repeat(33, 1).repeat(47, 2)
    write_video(tmp_path / "a.mp4", frames, 5)
    info = probe(tmp_path / "a.mp4")
    assert (info.width, info.height, info.has_audio, info.seconds) == (48, 34, False, 1.0)
    with av.open(str(tmp_path / "a.mp4")) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
    assert np.abs(decoded[:, :33, :47].astype(int) - frames).max() < 12
    assert np.abs(decoded[:, 33, :47].astype(int) - frames[:, 32]).max() < 12


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    frames, _ = flash_and_beep(10, 16000)
    write_video(tmp_path / "a.mp4", frames, 10)
    before = (tmp_path / "a.mp4").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(encode, "_write_sound", fail)
    with pytest.raises(OSError, match="disk full"):
        write_video(tmp_path / "a.mp4", frames, 10, np.zeros(16000, np.float32), 16000)
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize(
    ("frames", "waveform", "rate", "text"),
    [
        (np.zeros((4, 8, 8), np.uint8), None, None, "frames"),
        (np.zeros((4, 8, 8, 3), np.float32), None, None, "frames"),
        (np.zeros((0, 8, 8, 3), np.uint8), None, None, "frames"),
        (np.zeros((4, 8, 8, 3), np.uint8), np.zeros(9, np.float32), 11000, "waveform"),
        (np.zeros((4, 8, 8, 3), np.uint8), np.zeros((2, 9), np.float32), 16000, "waveform"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, frames, waveform, rate, text):
    with pytest.raises(ValueError, match=text):
        write_video(Path(tmp_path / "a.mp4"), frames, 10, waveform, rate)
    assert os.listdir(tmp_path) == []
