"""Clips are cut by time: sound and picture stay together whatever the file does, and faults stay where they are."""

import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.clip import Clip, MediaError
from mmldm_scale.media.decode import probe, read_clips
from tests.support.datasets.recordings import HITS

RATE = 16000
MEDIA = MediaConfig(frames=16, fps=20.0, size=32, audio=AudioImageConfig(sample_rate=RATE))  # 0.8 s


def read(path: Path, *starts: float, media: MediaConfig = MEDIA) -> list[Clip | MediaError]:
    return list(read_clips(path, starts, media))


def assert_in_step(clip: Clip, start: float, onsets, early: float = 0.0) -> None:
    """The hits, and nothing else, are heard where they belong and seen within half a frame of that.

    ``early`` is how much sooner than at ``start`` the clip may begin, where a codec's priming counts as sound.
    """
    assert isinstance(clip, Clip), clip
    flashes, beeps = onsets(clip, MEDIA.fps, RATE)
    expected = [hit - start for hit in HITS if start <= hit < start + MEDIA.seconds - 0.05]
    assert expected
    assert len(beeps) == len(flashes) == len(expected)
    for flash, beep, hit in zip(flashes, beeps, expected, strict=True):
        assert -0.002 <= beep - hit <= early + 0.002
        assert abs(flash - beep) <= 0.5 / MEDIA.fps + 0.002


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("a.mp4", {}),
        ("a.mkv", {}),
        ("a.mov", {}),
        ("a.ts", {}),
        ("a.flv", {}),
        ("a.avi", {"video_codec": "mpeg4", "audio_codec": "pcm_s16le"}),
        ("a.webm", {"video_codec": "libvpx-vp9", "audio_codec": "libopus", "rate": 48000}),
        ("a.mkv", {"video_codec": "ffv1", "audio_codec": "pcm_s16le"}),
        ("a.mp4", {"options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("a.mp4", {"rate": 16000, "layout": "mono"}),
        ("a.mov", {"rate": 8000, "layout": "mono", "audio_codec": "pcm_s16le"}),
        ("a.mp4", {"rate": 48000, "layout": "5.1"}),
        ("a.mp4", {"pixels": "yuv420p10le"}),
        ("a.mp4", {"pixels": "yuv444p", "size": (37, 51)}),
    ],
)
def test_any_container_rate_layout_and_depth(tmp_path, record, onsets, name, made):
    path = record(tmp_path / name, **made)
    info = probe(path)
    assert info.seconds == pytest.approx(2.5, abs=0.1)
    assert info.has_audio
    for start, clip in zip((0.0, 0.45, 1.5), read(path, 0.0, 0.45, 1.5), strict=True):
        assert clip.frames.shape == (16, 32, 32, 3)
        assert clip.frames.dtype == np.uint8
        assert clip.waveform.shape == (MEDIA.audio_samples,)
        assert clip.waveform.dtype == np.float32
        assert_in_step(clip, start, onsets)
        assert np.abs(clip.waveform).max() == pytest.approx(0.6, abs=0.12)  # downmixing keeps the level


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize(
    ("picture", "sound"), [(0.0, 0.3), (0.3, 0.0), (0.0, 0.017), (1.0, 1.2), (-0.2, 0.0), (0.0, -0.2)]
)
def test_streams_that_start_at_different_times_stay_together(tmp_path, record, onsets, name, picture, sound):
    if name == "a.mkv" and min(picture, sound) < 0:
        pytest.skip("Matroska has no negative timestamps")
    path = record(tmp_path / name, pictures=picture + np.arange(56) / 20, sound=(sound, sound + 2.8))
    info = probe(path)
    zero = max(picture, sound)  # on the clock of the hits
    (clip,) = read(path, 0.25)
    assert_in_step(clip, zero + 0.25, onsets, early=1024 / 44100)
    assert info.seconds == pytest.approx(min(picture, sound) + 2.8 - zero, abs=0.1)


def test_variable_frame_rate(tmp_path, record, onsets):
    uneven = np.cumsum(np.tile([0.02, 0.11, 0.05, 0.033], 11)).round(3)
    times = sorted({0.0, *uneven, *HITS, *(hit + 0.1 for hit in HITS)})
    path = record(tmp_path / "a.mp4", pictures=times)
    for start, clip in zip((0.1, 1.3), read(path, 0.1, 1.3), strict=True):
        assert_in_step(clip, start, onsets)


def test_a_picture_holds_until_the_next_one(tmp_path, record, onsets):
    path = record(tmp_path / "a.mp4", pictures=[0.0, 0.6, 0.7, 1.1, 1.2, 1.9, 2.0, 2.45])
    (clip,) = read(path, 0.5)
    assert_in_step(clip, 0.5, onsets)


def test_a_gap_in_the_sound_is_silence_and_shifts_nothing(tmp_path, record, onsets):
    path = record(tmp_path / "a.mkv", audio_codec="pcm_s16le", gap=(0.8, 1.3))
    clip, late = read(path, 0.5, 1.5)
    flashes, beeps = onsets(clip, MEDIA.fps, RATE)
    assert (flashes, beeps) == (pytest.approx([0.1, 0.6]), pytest.approx([0.1], abs=0.001))
    assert not clip.waveform[round(0.35 * RATE) : round(0.75 * RATE)].any()
    assert_in_step(late, 1.5, onsets)


def test_resampling_neither_shifts_nor_scales(tmp_path, record):
    path = record(tmp_path / "a.mkv", audio_codec="pcm_s16le", layout="mono")
    (clip,) = read(path, 0.3)
    times = 0.3 + np.arange(MEDIA.audio_samples) / RATE
    inside = (times > 0.61) & (times < 0.69)
    assert clip.waveform[inside] == pytest.approx(0.6 * np.cos(2 * np.pi * 1000 * times[inside]), abs=0.01)


def test_overlapping_windows_equal_single_ones(tmp_path, record):
    path = record(tmp_path / "a.mp4")
    starts = [i / 20 for i in range(0, 34, 3)]
    together = read(path, *starts)
    for start, clip in zip(starts, together, strict=True):
        (alone,) = read(path, start)
        assert np.array_equal(clip.frames, alone.frames)
        assert np.array_equal(clip.waveform, alone.waveform)


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv", "long.ts", "long.flv", "long.avi"])
def test_seeking_gives_what_decoding_on_gives(tmp_path, record, name):
    def paint(time: float, height: int, width: int) -> np.ndarray:
        return np.full((height, width, 3), round(time * 1000) % 200 + 30, np.uint8)

    codecs = {"video_codec": "mpeg4", "audio_codec": "pcm_s16le"} if name == "long.avi" else {}
    path = record(tmp_path / name, pictures=np.arange(600) / 20, sound=(0, 30), paint=paint, **codecs)
    near, far, farther = read(path, 0.0, 14.3, 28.0)
    (alone,) = read(path, 14.3)
    assert np.array_equal(far.frames, alone.frames)
    assert far.waveform == pytest.approx(alone.waveform, abs=1e-4)
    for start, clip in ((0.0, near), (14.3, far), (28.0, farther)):
        shades = [round((start + i / 20) * 1000) % 200 + 30 for i in range(16)]
        assert clip.frames.mean((1, 2, 3)) == pytest.approx(shades, abs=3)


@pytest.mark.parametrize("fps", [8.0, 12.5, 24.0, 25.0, 30000 / 1001, 30.0, 50.0])
def test_frames_are_never_more_than_half_a_frame_off(tmp_path, record, onsets, fps):
    times = np.arange(round(3 * fps)) / fps
    path = record(tmp_path / "a.mkv", pictures=times, audio_codec="pcm_s16le")
    seen = [round(float(times[times.round(3) >= hit][0]), 3) for hit in HITS]  # where the source shows each hit
    starts = [i * 0.0137 for i in range(60)]
    media = MediaConfig(frames=16, fps=16.0, size=32, audio=AudioImageConfig(sample_rate=RATE))
    late = []
    for start, clip in zip(starts, read(path, *starts, media=media), strict=True):
        flashes, beeps = (np.add(found, start) for found in onsets(clip, media.fps, RATE))
        for hit, flash in zip(HITS, seen, strict=True):
            if start + 0.06 <= hit <= start + media.seconds - 0.12:
                late.append(min(flashes - flash, key=abs))
                assert np.abs(beeps - hit).min() < 0.002
    assert max(late) <= 0.5 / media.fps + 0.002
    assert min(late) >= -0.5 / media.fps - 0.002
    assert np.mean(late) == pytest.approx(0, abs=0.1 / media.fps)  # and no bias


def _quarters(time: float, height: int, width: int) -> np.ndarray:
    """Return a picture whose left upper quarter is red, right upper green, left lower blue, right lower white."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2, 0] = 255
    picture[: height // 2, width // 2 :, 1] = 255
    picture[height // 2 :, : width // 2, 2] = 255
    picture[height // 2 :, width // 2 :] = 255
    return picture


@pytest.mark.parametrize(
    ("matrix", "quarters"),
    [
        ((1, 0, 0, 1), "RGBW"),
        ((0, 1, -1, 0), "BRWG"),  # clockwise by 90°: what was left is now up
        ((-1, 0, 0, -1), "WBGR"),
        ((0, -1, 1, 0), "GWRB"),
        ((-1, 0, 0, 1), "GRWB"),  # mirrored
        ((1, 0, 0, -1), "BWRG"),
        ((0, 1, 1, 0), "RBGW"),
    ],
)
def test_pictures_are_turned_and_mirrored_as_the_file_says(tmp_path, record, matrix, quarters):
    path = record(tmp_path / "a.mp4", size=(64, 96), paint=_quarters)
    _set_display_matrix(path, matrix)
    (clip,) = read(path, 0.0)
    picture = clip.frames[3].astype(int)
    colours = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255)}
    for place, name in zip([(8, 8), (8, 24), (24, 8), (24, 24)], quarters, strict=True):
        assert np.abs(picture[place] - colours[name]).max() < 60


def test_of_an_interlaced_picture_one_field_is_shown(tmp_path, record):
    def paint(time: float, height: int, width: int) -> np.ndarray:
        picture = np.full((height, width, 3), 200, np.uint8)
        picture[1::2] = 20  # the lower field is dark: another moment
        return picture

    options = {"x264-params": "tff=1"}
    path = record(tmp_path / "a.mp4", size=(128, 128), paint=paint, codec_options=options)
    (clip,) = read(path, 0.0)
    assert clip.frames.mean() > 180


def _set_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the first track is the picture's
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize(("width", "pixel_aspect"), [(128, Fraction(1)), (64, Fraction(2))])
def test_crop_and_pad_keep_the_shape(tmp_path, record, width, pixel_aspect):
    """A disc in a picture twice as wide as high stays round, also where its pixels are not square."""

    def paint(time: float, height: int, width: int) -> np.ndarray:
        rows, columns = np.mgrid[:height, :width]
        disc = (rows - height / 2) ** 2 + ((columns - width / 2) * pixel_aspect) ** 2 < (height / 4) ** 2
        return np.where(disc[..., None], 255, 90).astype(np.uint8).repeat(3, 2)

    path = record(tmp_path / "a.mp4", size=(64, width), paint=paint, pixel_aspect=pixel_aspect)
    cropped = read(path, 0.0)[0].frames[0][..., 1] > 170
    padded_picture = read(path, 0.0, media=MediaConfig(frames=16, fps=20.0, size=32, fit="pad"))[0].frames[0][..., 1]
    padded = padded_picture > 170
    for mask, diameter in ((cropped, 16), (padded, 8)):
        assert mask.any(0).sum() == pytest.approx(diameter, abs=1)
        assert mask.any(1).sum() == pytest.approx(diameter, abs=1)
    assert not padded_picture[:7].any()
    assert not padded_picture[25:].any()
    assert padded_picture[8:24].min() > 60


# --- faults ----------------------------------------------------------------------------------------------------------


def reason_of(path: Path, *starts: float) -> str:
    with pytest.raises(MediaError) as caught:
        read(path, *(starts or (0.0,)))
    assert str(path) in caught.value.detail
    assert "\n" not in str(caught.value)
    return caught.value.reason


def test_files_that_give_nothing(tmp_path, record, capfd):
    text, empty = tmp_path / "text.mp4", tmp_path / "empty.mp4"
    text.write_text("this is no video\n" * 100)
    empty.touch()
    assert reason_of(tmp_path / "absent.mp4") == "missing_file"
    assert reason_of(tmp_path) == "unreadable"
    assert reason_of(text) == "not_media"
    assert reason_of(empty) == "empty_file"
    assert reason_of(record(tmp_path / "mute.mp4", sound=None)) == "no_audio_stream"
    assert reason_of(record(tmp_path / "dark.mp4", pictures=())) == "no_video_stream"
    whole = record(tmp_path / "whole.mp4").read_bytes()
    headless = tmp_path / "headless.mp4"
    headless.write_bytes(whole[: len(whole) // 2])  # the index lies at the end
    assert reason_of(headless) == "not_media"
    captured = capfd.readouterr()
    assert captured.err + captured.out == ""


def test_a_playlist_posing_as_a_video_is_not_followed(tmp_path, record):
    record(tmp_path / "a.ts")
    playlist = tmp_path / "list.mp4"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.5,\na.ts\n#EXT-X-ENDLIST\n")
    assert reason_of(playlist) == "not_media"


def test_probe_tells_a_silent_file_without_raising(tmp_path, record):
    info = probe(record(tmp_path / "mute.mp4", sound=None))
    assert (info.has_audio, info.sample_rate, info.width, info.height) == (False, 0, 64, 48)
    assert info.seconds == pytest.approx(2.5, abs=0.01)
    assert info.fps == pytest.approx(20)


def test_windows_past_the_end_are_too_short(tmp_path, record):
    path = record(tmp_path / "a.mp4", sound=(0, 1.9))
    clip, late, later = read(path, 1.0, 1.3, 5.0)
    assert isinstance(clip, Clip)
    assert (late.reason, later.reason) == ("too_short", "too_short")
    assert read(path) == []


def test_a_truncated_file_gives_the_windows_it_still_has(tmp_path, record):
    path = record(tmp_path / "a.mp4", options={"movflags": "faststart"}, size=(240, 320), paint=noise)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    first, last = read(path, 0.0, 1.6)
    assert isinstance(first, Clip)
    assert isinstance(last, MediaError)
    assert last.reason in ("truncated", "corrupt")


def noise(time: float, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(round(time * 1000)).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_damage_spoils_only_the_windows_that_need_it(tmp_path, record, kind):
    path = record(tmp_path / "a.mp4", pictures=np.arange(120) / 20, sound=(0, 6), paint=noise)
    before = read(path, 0.0, 2.8, 5.0)
    _damage(path, kind, 3.0)
    after = read(path, 0.0, 2.8, 5.0)
    assert isinstance(after[1], MediaError)
    assert after[1].reason == "corrupt"
    assert kind in after[1].detail
    for one, other in ((before[0], after[0]), (before[2], after[2])):
        assert np.array_equal(one.frames, other.frames)
        assert other.waveform == pytest.approx(one.waveform, abs=1e-3)


def _damage(path: Path, kind: str, time: float) -> None:
    """Overwrite the middle of the packet that holds ``time``: its header still looks fine."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(**{kind: 0}) if p.pts is not None]
        packet = min(packets, key=lambda p: abs(float(p.pts * p.time_base) - time))
        position, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[position + size // 2 : position + size * 3 // 4] = np.random.default_rng(0).bytes(size * 3 // 4 - size // 2)
    path.write_bytes(data)


def test_random_damage_ends_in_clips_or_errors(tmp_path, record):
    original = record(tmp_path / "a.mp4").read_bytes()
    path = tmp_path / "b.mp4"
    rng = np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(original)
        for position in rng.integers(0, len(data), 20):
            data[position] = rng.integers(256)
        path.write_bytes(data)
        try:
            results = read(path, 0.0, 0.7)
        except MediaError:
            continue
        assert len(results) == 2


@pytest.mark.parametrize(
    ("name", "made", "early"),
    [
        ("song.wav", {"audio_codec": "pcm_s16le"}, 0.0),
        ("song.mp3", {"audio_codec": "libmp3lame"}, 0.0),
        ("song.mkv", {"audio_codec": "pcm_s16le", "sound": (1.0, 3.5)}, 1.0),  # its clock begins at 1 s
    ],
)
def test_sound_from_a_file_of_its_own(tmp_path, record, onsets, name, made, early):
    song = record(tmp_path / name, pictures=(), **made)
    mute = record(tmp_path / "mute.mp4", sound=None, pictures=np.arange(60) / 20)
    loud = record(tmp_path / "loud.mp4", sound=(0.0, 0.5))
    info = probe(mute, song)
    assert info.has_audio
    assert (info.start, info.seconds) == (0.0, pytest.approx(2.5, abs=0.06))
    for path in (mute, loud):
        (clip,) = read_clips(path, [0.35], MEDIA, sound=song)
        flashes, beeps = onsets(clip, MEDIA.fps, RATE)
        assert flashes == pytest.approx([0.25, 0.75])
        expected = [hit - 0.35 - early for hit in HITS if 0 <= hit - 0.35 - early < MEDIA.seconds]
        assert beeps == pytest.approx(expected, abs=0.002)


def test_a_sound_file_that_gives_no_sound_is_named(tmp_path, record):
    mute = record(tmp_path / "mute.mp4", sound=None)
    for song, reason in ((tmp_path / "gone.wav", "missing_file"), (mute, "no_audio_stream")):
        with pytest.raises(MediaError, match=song.name) as error:
            list(read_clips(mute, [0.0], MEDIA, sound=song))
        assert error.value.reason == reason


def test_starts_must_ascend(tmp_path, record):
    path = record(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="ascending"):
        read(path, 0.5, 0.1)


@pytest.mark.skipif("MMLDM_TEST_MEDIA" not in os.environ, reason="MMLDM_TEST_MEDIA names no folder of real videos")
def test_real_files():
    paths = sorted(Path(os.environ["MMLDM_TEST_MEDIA"]).glob("*.mp4"))
    assert paths
    for path in paths:
        info = probe(path)
        starts = np.arange(0, info.seconds - MEDIA.seconds, 1.0)
        if not info.has_audio:
            assert reason_of(path) == "no_audio_stream"
            continue
        clips = read(path, *starts)
        assert all(isinstance(clip, Clip) for clip in clips)
        assert len(clips) == len(starts)
