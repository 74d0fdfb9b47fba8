import dataclasses
import io
import wave

import numpy as np
import pytest
from PIL import Image

from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.clip import Clip
from mmldm_scale.shards.clips import decode_clip, encode_clip


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
