"""The inputs of a2v and v2a: found in a fixed order, looked at once for all tasks of a job, and not changed since."""

import json
import re
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.stream import Disposition
from av.video.frame import VideoFrame

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.common.modalities import Modality
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.encode import write_video
from mmldm_scale.media.wav import write_wav
from mmldm_scale.sampling.inputs import (
    Wanted,
    Window,
    check_sets,
    choose_inputs,
    count_inputs,
    list_inputs,
    parse_window,
    read_first_clip,
    read_windows,
)
from tests.support.datasets.clip_sets import write_clips
from tests.support.tiny_models import tiny_autoencoder

MEDIA = MediaConfig(frames=4, fps=10, size=32)
SOUND: tuple[Modality, ...] = ("audio",)


@pytest.fixture
def select(tmp_path: Path):
    """Choose among videos with a new record; return their names."""

    def run(
        videos: list[Path],
        needed: int | None,
        media: MediaConfig = MEDIA,
        given: Modality = "audio",
        window: Window = "first",
    ) -> list[str]:
        with Leases(tmp_path) as leases:
            chosen = choose_inputs(tmp_path / "inputs.json", videos, needed, Wanted((given,), media, window), leases)
        if window == "first":
            return [Path(part.path).name for part in chosen]
        return [f"{Path(part.path).name} {part.start:g}" for part in chosen]

    return run


def test_videos_are_found_anywhere_below_a_folder_in_a_fixed_order(videos):
    names = [video.relative_to(videos).as_posix() for video in list_inputs(videos, SOUND)]
    assert names == ["a.mp4", "m_broken.mp4", "n_silent.mp4", "sub/b.mp4", "z.mp4"]
    assert list_inputs(videos / "a.mp4", SOUND) == [videos / "a.mp4"]


def test_hidden_files_are_left_out(tmp_path):
    for name in ("._clip.mp4", "clip.mp4", ".trash/old.mp4", "sub/._b.wav", "sub/b.WAV"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert list_inputs(tmp_path, SOUND) == [tmp_path / "clip.mp4", tmp_path / "sub/b.WAV"]


def test_an_unusable_video_is_skipped_with_its_reason_in_one_line(videos, select, capfd):
    assert select(list_inputs(videos, SOUND), 10) == ["a.mp4", "b.mp4", "z.mp4"]
    told = [line for line in capfd.readouterr().err.splitlines() if "skipped" in line]
    assert len(told) == 2
    assert told[0].endswith(" (not_media)")
    assert "m_broken.mp4" in told[0]
    assert told[1].endswith(" (no_audio_stream)")
    assert "n_silent.mp4" in told[1]


def test_silent_videos_do_where_only_pictures_are_needed(videos, select):
    assert select(list_inputs(videos, SOUND), 10, given="video") == ["a.mp4", "n_silent.mp4", "b.mp4", "z.mp4"]
    clip = read_first_clip(videos / "n_silent.mp4", MEDIA, need_sound=False)
    assert clip.frames.mean() == pytest.approx(200, abs=3)
    assert not clip.waveform.any()


def test_no_more_are_looked_at_than_needed_and_none_twice(videos, select, capfd):
    assert select(list_inputs(videos, SOUND), 1) == ["a.mp4"]
    assert "skipped" not in capfd.readouterr().err
    assert select(list_inputs(videos, SOUND), 2) == ["a.mp4", "b.mp4"]
    assert capfd.readouterr().err.count("skipped") == 2
    assert select(list_inputs(videos, SOUND), 1) == ["a.mp4"]
    assert select(list_inputs(videos, SOUND), 10) == ["a.mp4", "b.mp4", "z.mp4"]
    assert "skipped" not in capfd.readouterr().err


def test_what_the_first_task_saw_is_what_all_use(videos, tmp_path):
    shutil.copytree(videos, tmp_path / "videos")
    listed, record = list_inputs(tmp_path / "videos", SOUND), tmp_path / "inputs.json"
    with Leases(tmp_path) as leases:
        first, *_ = choose_inputs(record, listed, 3, Wanted(SOUND, MEDIA), leases)
        assert first.read(Wanted(SOUND, MEDIA)).frames.shape == (4, 32, 32, 3)
        content = listed[0].read_bytes()
        for change in (b"", content[:-1], None):
            listed[0].unlink() if change is None else listed[0].write_bytes(change)
            assert choose_inputs(record, listed, 3, Wanted(SOUND, MEDIA), leases)[0] == first
            with pytest.raises(UserError, match=f"^--input: {listed[0]}: changed since this job's first task looked"):
                first.read(Wanted(SOUND, MEDIA))
        record.write_text("[1]")
        with pytest.raises(UserError, match="not the record of a sampling job's inputs"):
            choose_inputs(record, listed, 3, Wanted(SOUND, MEDIA), leases)


def test_nothing_usable_is_an_error(videos, select, tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no such file or folder"):
        list_inputs(tmp_path / "nowhere", SOUND)
    with pytest.raises(UserError, match="contains no video and no sound file; allowed endings: .*flac.*mp4"):
        list_inputs(tmp_path / "empty", SOUND)
    with pytest.raises(UserError, match="contains no video; allowed endings: .*mp4"):
        list_inputs(tmp_path / "empty", ["video"])
    with pytest.raises(UserError, match=r"none of 1 files can be used; .*no_audio_stream"):
        select([videos / "n_silent.mp4"], 3)
    assert "skipped" not in capfd.readouterr().err  # the error is the one line
    with pytest.raises(UserError, match=r"none of 3 files can be used; .*too_short"):
        select(list_inputs(videos / "sub", SOUND) * 3, 3, MediaConfig(frames=400, fps=10, size=32))


def test_the_record_of_a_job_that_was_refused_later_does_not_count(videos, select):
    assert select([videos / "z.mp4"], 1) == ["z.mp4"]
    assert select([videos / "a.mp4"], 1) == ["a.mp4"]


def tone(seconds: float, rate: int) -> np.ndarray:
    """Return a tone of 440 Hz whose level rises in steps of 0.1 s, (N,) float32."""
    time = np.arange(round(rate * seconds)) / rate
    return (np.sin(2 * np.pi * 440 * time) * (1 + np.floor(10 * time + 1e-9)) / 20).astype(np.float32)


def write_sound(path: Path, codec: str, seconds: float, cover: bool = False) -> None:
    """Write a tone of 440 Hz, at 48 kHz in stereo; with ``cover`` art, as music files have it."""
    waveform = tone(seconds, 48_000)
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48_000, layout="stereo")
        art = container.add_stream("mjpeg", rate=1) if cover else None
        if art is not None:
            art.width = art.height = 16
            art.pix_fmt = "yuvj420p"
            art.disposition = Disposition.attached_pic
            container.mux(art.encode(VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        resampler = AudioResampler(format=stream.format, layout="stereo", rate=48_000, frame_size=stream.frame_size)
        frame = AudioFrame.from_ndarray(np.stack([waveform, waveform]), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """A folder of sound files, one too short, one that is none, and a video."""
    folder = tmp_path_factory.mktemp("sounds")
    codecs = {"a.wav": "pcm_s16le", "b.flac": "flac", "d.ogg": "libopus", "e.opus": "libopus", "f.m4a": "aac"}
    for name, codec in codecs.items():
        write_sound(folder / name, codec, 1.0)
    write_sound(folder / "c.mp3", "libmp3lame", 1.0, cover=True)
    write_sound(folder / "g_short.wav", "pcm_s16le", 0.2)
    (folder / "h_none.mp3").write_bytes(b"no sound")
    write_video(folder / "i.mp4", np.zeros((10, 32, 32, 3), np.uint8), 10, tone(1.0, 8000), 8000)
    write_video(folder / "j_mute.mp4", np.zeros((10, 32, 32, 3), np.uint8), 10, np.zeros(8000, np.float32), 8000)
    return folder


def test_a2v_takes_sound_files_and_v2a_does_not(sounds, select, capfd):
    listed = list_inputs(sounds, SOUND)
    assert select(listed, 10) == ["a.wav", "b.flac", "c.mp3", "d.ogg", "e.opus", "f.m4a", "i.mp4"]
    said = [line for line in capfd.readouterr().err.splitlines() if "skipped" in line]
    assert len(said) == 3
    assert said[0] == f"skipped {sounds}/g_short.wav: 0.4 s of sound are needed; it has 0.200 s (too_short)"
    assert said[1].startswith(f"skipped {sounds}/h_none.mp3: ")
    assert re.fullmatch(rf"skipped {sounds}/j_mute.mp4: RMS level -[\d.]+ dB, below -60 dB \(silent\)", said[2])
    assert list_inputs(sounds, ["video"]) == [sounds / "i.mp4", sounds / "j_mute.mp4"]
    with pytest.raises(UserError, match=r"none of 1 files can be used; .*no_video_stream"):
        select([sounds / "a.wav"], 1, given="video")


def test_the_sound_of_a_file_without_picture_is_that_of_its_beginning(sounds):
    expected = tone(MEDIA.seconds, MEDIA.audio.sample_rate)
    for name in ("a.wav", "b.flac", "c.mp3", "d.ogg", "e.opus", "f.m4a"):
        clip = next(read_windows(sounds / name, [0.0], Wanted(SOUND, MEDIA)))
        assert clip.frames.shape[0] == 0
        assert clip.waveform.shape == (MEDIA.audio_samples,)
        assert np.corrcoef(clip.waveform[500:], expected[500:])[0, 1] > 0.98, name


def test_windows_of_a_file(videos, sounds, select, tmp_path, capfd):
    """Of 1 s and clips of 0.4 s: the beginning, the end, both whole ones, or the one that is named."""
    files = [videos / "a.mp4", sounds / "a.wav", sounds / "g_short.wav"]
    assert select(files, 9, window="last") == ["a.mp4 0.6", "a.wav 0.6"]
    assert select(files, None, window="all") == ["a.mp4 0", "a.mp4 0.4", "a.wav 0", "a.wav 0.4"]
    assert select(files, 3, window="all") == ["a.mp4 0", "a.mp4 0.4", "a.wav 0"]
    assert select(files[:2], 9, window=0.5) == ["a.mp4 0.5", "a.wav 0.5"]
    rows = json.loads((tmp_path / "inputs.json").read_text())
    assert [(row["window"], row["start"]) for row in rows] == [(0.5, 0.5)] * 2
    assert select(files, 1) == ["a.mp4"]
    assert set(json.loads((tmp_path / "inputs.json").read_text())[0]) == {"path", "sha256", "reason"}
    assert count_inputs(files, Wanted(SOUND, MEDIA, "all")) == 4
    capfd.readouterr()
    assert select(files, 9, window=0.7, media=MediaConfig(frames=2, fps=10, size=32)) == ["a.mp4 0.7", "a.wav 0.7"]
    said = f"skipped {files[2]}: 0.2 s of sound from 0.7 s on are needed; it has 0.200 s (too_short)"
    assert said in capfd.readouterr().err


def test_the_sound_of_a_later_window_is_that_of_its_time(sounds):
    whole = tone(1.0, MEDIA.audio.sample_rate)
    for name in ("a.wav", "c.mp3", "f.m4a"):
        for start, clip in zip((0.0, 0.5), read_windows(sounds / name, [0.0, 0.5], Wanted(SOUND, MEDIA)), strict=True):
            there = whole[round(start * MEDIA.audio.sample_rate) :][: MEDIA.audio_samples]
            assert np.corrcoef(clip.waveform[500:-500], there[500:-500])[0, 1] > 0.98, name
            assert np.abs(clip.waveform).max() == pytest.approx(np.abs(there).max(), rel=0.1), name


def test_a_window_of_a_single_file_that_is_skipped_is_named(select, tmp_path, capfd):
    file, rate = tmp_path / "half.wav", MEDIA.audio.sample_rate
    write_wav(file, np.concatenate([tone(0.4, rate), np.zeros(round(0.4 * rate), np.float32)]), rate)
    assert select([file], None, window="all") == ["half.wav 0"]
    said = [line for line in capfd.readouterr().err.splitlines() if "skipped" in line]
    assert len(said) == 1
    assert said[0].endswith(f"skipped {file} from 0.4 s on: RMS level -200.0 dB, below -60 dB (silent)")


@pytest.mark.parametrize("text", ["middle", "-1", "nan", "inf", ""])
def test_no_window(text):
    with pytest.raises(UserError, match=f"^--window {text}: must be first, last, all or a start in seconds"):
        parse_window(text)


def test_the_clips_of_a_shard_set(tmp_path, select):
    folder, media = write_clips(tmp_path / "clips", 3), tiny_autoencoder.MEDIA
    wanted = Wanted(("audio", "video"), media)
    assert list_inputs(folder, ["video"]) == [folder]
    with Leases(tmp_path) as leases:
        inputs = choose_inputs(tmp_path / "inputs.json", [folder], 9, wanted, leases)
    assert [part.key for part in inputs] == ["clip_0", "clip_1", "clip_2"]
    assert len({part.sha256 for part in inputs}) == 3
    assert inputs[1].read(wanted).frames.shape == (media.frames, media.size, media.size, 3)
    with pytest.raises(UserError, match="clips: clip_1: changed since this job's first task looked at it"):
        replace(inputs[1], sha256="0").read(wanted)
    check_sets([folder], wanted)
    with pytest.raises(UserError, match=rf"its clips have media.frames={media.frames}, not 99; give the videos of"):
        check_sets([folder], Wanted(SOUND, replace(media, frames=99)))
    with pytest.raises(UserError, match="--window 2: each clip of the set .* is one window"):
        check_sets([folder], Wanted(SOUND, media, 2.0))
