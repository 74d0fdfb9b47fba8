import dataclasses
import io
import wave

import numpy as np
import pytest
from PIL import Image

from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.clip import NO_FRAMES, NO_SOUND, Clip
from mmldm_scale.shards.clips import clip_modalities, decode_clip, encode_clip, encode_lossless


def test_round_trip_keeps_pictures_and_sound(make_clip):
    clip = make_clip(3)
    members = encode_clip(clip, 8000, 95)
    back = decode_clip(members)
    assert list(members) == ["00.jpg", "01.jpg", "02.jpg", "03.jpg", "wav"]
    assert back.frames.shape == clip.frames.shape
    assert back.frames.dtype == np.uint8
    assert np.abs(back.frames.astype(int) - clip.frames).mean() < 3
    assert back.waveform.dtype == np.float32
    np.testing.assert_allclose(back.waveform, clip.waveform, atol=0.5 / 32768 + 1e-7)


def test_a_lossless_sample_gives_the_very_clip_back(make_clip):
    noise = np.random.default_rng(0).integers(0, 256, (3, 15, 17, 3)).astype(np.uint8)
    clip = Clip(noise, np.array([0.1, -1e-9, 1 / 3], np.float32))
    members = encode_lossless(clip, 8000)
    assert list(members) == ["00.png", "01.png", "02.png", "wav"]
    back = decode_clip(members)
    np.testing.assert_array_equal(back.frames, clip.frames)
    np.testing.assert_array_equal(back.waveform, clip.waveform)


@pytest.mark.parametrize(("frames", "sound"), [(True, False), (False, True)])
def test_a_lossless_sample_may_be_of_one_modality(make_clip, frames, sound):
    clip = make_clip(3)
    clip = Clip(clip.frames if frames else NO_FRAMES, clip.waveform if sound else NO_SOUND)
    members = encode_lossless(clip, 8000)
    back = decode_clip(members, modalities=clip_modalities(members))
    np.testing.assert_array_equal(back.frames, clip.frames)
    np.testing.assert_array_equal(back.waveform, clip.waveform)
    with pytest.raises(ValueError, match="contains no clip"):
        decode_clip(members)


def test_damage_to_a_lossless_sample_is_told(make_clip):
    members = encode_lossless(make_clip(3), 8000)
    wav, picture = members["wav"], members["01.png"]
    infinite = np.array([np.inf], "<f4").tobytes()
    for name, content, says in (
        ("wav", wav[:-2], "not a complete WAV of 1 channel of 32-bit floats"),
        ("wav", wav[:40], "sound is not a complete WAV"),
        ("wav", wav[:22] + b"\2" + wav[23:], "not a complete WAV of 1 channel"),
        ("wav", wav[:-4] + infinite, "not finite"),
        ("01.png", picture[:-40], "a frame is not a complete PNG"),
        ("01.png", picture[:60] + b"\0\0\0\0" + picture[64:], "a frame is not a complete PNG"),
        ("01.png", encode_clip(make_clip(3), 8000, 95)["01.jpg"], "a frame is not a complete PNG"),
    ):
        with pytest.raises(ValueError, match=says):
            decode_clip({**members, name: content})


def test_a_clip_is_held_against_what_its_set_says(make_clip):
    clip = make_clip(3)
    members = encode_clip(clip, 8000, 95)
    seconds = len(clip.waveform) / 8000
    audio = AudioImageConfig(sample_rate=8000, f_max=4000)
    media = MediaConfig(len(clip.frames), len(clip.frames) / seconds, clip.frames.shape[1], audio=audio)
    assert len(decode_clip(members, media=media).frames) == media.frames
    assert len(decode_clip(members, [1], media).frames) == 1
    with pytest.raises(ValueError, match="expected"):
        decode_clip(members, media=dataclasses.replace(media, size=media.size + 1))


def test_only_the_frames_asked_for_in_the_order_asked_for(make_clip):
    members = encode_clip(make_clip(0), 8000, 95)
    whole = decode_clip(members)
    some = decode_clip({**members, "01.jpg": b"not looked at"}, frames=[3, 0])
    np.testing.assert_array_equal(some.frames, whole.frames[[3, 0]])


def test_colour_keeps_full_resolution():
    frame = np.zeros((16, 16, 3), np.uint8)
    frame[:, ::2] = (255, 0, 0)
    frame[:, 1::2] = (0, 0, 255)
    back = decode_clip(encode_clip(Clip(frame[None], np.zeros(10, np.float32)), 8000, 100)).frames[0]
    assert back[4, 4, 0] > 220 > 40 > back[4, 5, 0]


def test_full_scale_does_not_wrap_around():
    loud = np.array([1.0, -1.0, 0.99999], np.float32)
    back = decode_clip(encode_clip(Clip(np.zeros((1, 8, 8, 3), np.uint8), loud), 8000, 90)).waveform
    np.testing.assert_allclose(back, loud, atol=1 / 32768)


def test_names_sort_as_frames_follow_beyond_a_hundred():
    clip = Clip(np.zeros((101, 8, 8, 3), np.uint8), np.zeros(1, np.float32))
    names = [name for name in encode_clip(clip, 8000, 50) if name != "wav"]
    assert names == sorted(names)
    assert names[7] == "007.jpg"


def bomb() -> bytes:
    header = bytearray(encode_clip(Clip(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.float32)), 8000, 50)["00.jpg"])
    start = header.index(b"\xff\xc0") + 5
    header[start : start + 4] = b"\xff\xff\xff\xff"
    return bytes(header)


def stereo() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((2, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16))
    return buffer.getvalue()


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("member", "content"),
    [
        ("00.jpg", b""),
        ("00.jpg", b"hello"),
        ("00.jpg", png()),
        ("00.jpg", bomb()),
        ("01.jpg", encode_clip(Clip(np.zeros((1, 9, 8, 3), np.uint8), np.zeros(1, np.float32)), 8000, 50)["00.jpg"]),
        ("wav", b""),
        ("wav", b"RIFF\0\0\0\0WAVE"),
        ("wav", stereo()),
    ],
)
def test_what_is_no_clip_is_a_value_error(make_clip, member, content):
    members = {**encode_clip(make_clip(0), 8000, 90), member: content}
    with pytest.raises(ValueError):  # noqa: PT011 (each names its own trouble)
        decode_clip(members)


def test_a_sample_of_another_kind_is_named():
    with pytest.raises(ValueError, match=r"audio\.npy"):
        decode_clip({"audio.npy": b"", "json": b"{}"})
