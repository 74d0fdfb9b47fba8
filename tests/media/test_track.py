"""What is opened, and what is refused before libav sees it."""

import io
import os
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.decode import probe, read_clips
from mmldm_scale.media.track import open_container
from tests.support.rights import without_rights


def reason_of(path: Path) -> str:
    with pytest.raises(MediaError) as caught:
        probe(path)
    return caught.value.reason


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "device.mp4").symlink_to("/dev/zero")
    (tmp_path / "dangling.mp4").symlink_to("nowhere")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "folder.mp4").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.mp4"))
        reasons = {path.stem: reason_of(path) for path in tmp_path.iterdir()}
    refused = dict.fromkeys(["pipe", "device", "folder", "socket"], "unreadable")
    assert reasons == {**refused, "dangling": "missing_file", "loop": "missing_file"}


def test_a_file_that_is_not_ours_to_read(tmp_path, record):
    path = record(tmp_path / "a.mp4")
    hidden = record(_made(tmp_path / "hidden") / "a.mp4")
    path.chmod(0)
    assert without_rights(lambda: [reason_of(path), reason_of(hidden)] != ["unreadable"] * 2, hidden.parent) == 0


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile a.mkv\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.5,\na.mkv\n#EXT-X-ENDLIST\n",
        '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>\n',
    ],
)
def test_lists_of_other_files_are_not_followed(tmp_path, record, text):
    record(tmp_path / "a.mkv")
    (tmp_path / "list.mp4").write_text(text)
    assert reason_of(tmp_path / "list.mp4") == "not_media"


@pytest.mark.parametrize("name", ["a\nb.mp4", 'it\'s "q".mp4', "co:lon.mp4", "-i.mp4", "100%25.mp4", "bad\udcff.mp4"])
def test_a_name_is_only_a_name(tmp_path, record, name):
    record(tmp_path / "plain.mp4").rename(tmp_path / name)
    assert probe(tmp_path / name).seconds == pytest.approx(2.5, abs=0.1)


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".ts", ".flv"])
def test_the_wrong_suffix_does_no_harm(tmp_path, record, suffix):
    codecs = {"video_codec": "mpeg4", "audio_codec": "pcm_s16le"} if suffix == ".avi" else {}
    path = record(tmp_path / f"a{suffix}", **codecs).rename(tmp_path / "b.mp4")
    assert probe(path).has_audio
    with open_container(path) as container:
        assert "mp4" not in container.format.name


def test_cover_art_is_no_video(tmp_path, record):
    music = record(tmp_path / "music.mp3", pictures=(), audio_codec="libmp3lame")
    path = tmp_path / "cover.mp4"
    path.write_bytes(_id3_with_picture() + music.read_bytes())
    with open_container(path) as container:
        assert len(container.streams.video) == 1
    assert reason_of(path) == "no_video_stream"


def _id3_with_picture() -> bytes:
    """Return an ID3v2.3 tag with a 16×16 picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 99, np.uint8)).save(buffer, "JPEG")
    body = b"\0image/jpeg\0\x03\0" + buffer.getvalue()
    frame = b"APIC" + struct.pack(">IH", len(body), 0) + body
    size = len(frame)
    return b"ID3\x03\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + frame


def test_a_length_that_the_bytes_cannot_hold_is_refused(tmp_path, record):
    path = record(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes().replace(b"edts", b"free"))  # without edit lists
    header = 0
    while (header := data.find(b"mdhd", header + 4)) >= 0:  # each stream's time scale and length, then its frames'
        times = data.index(b"stts", header)
        (scale,) = struct.unpack_from(">I", data, header + 16)
        struct.pack_into(">I", data, header + 20, 40_000 * scale)
        struct.pack_into(">I", data, times + 16, 1_000 * scale)
    path.write_bytes(data)
    assert reason_of(path) == "too_long"


def test_a_picture_too_large_is_refused(tmp_path, record):
    path = record(tmp_path / "a.mkv", size=(272, 320), video_codec="ffv1", audio_codec="pcm_s16le")
    width, height = b"\xb0\x82\x01\x40", b"\xba\x82\x01\x10"
    data = path.read_bytes()
    assert data.count(width + height) == 1
    path.write_bytes(data.replace(width + height, b"\xb0\x82\x30\x00\xba\x82\x30\x00"))  # 12288×12288
    assert reason_of(path) == "too_large"


@pytest.mark.parametrize("rate", [1.0, 2e9])
def test_a_sample_rate_beyond_all_reason_is_refused(tmp_path, record, rate):
    path = record(tmp_path / "a.mkv", audio_codec="pcm_s16le", layout="mono")
    data = path.read_bytes()
    assert data.count(struct.pack(">d", 44100)) == 1
    path.write_bytes(data.replace(struct.pack(">d", 44100), struct.pack(">d", rate)))
    with pytest.raises(MediaError, match="unsupported_codec"):
        list(read_clips(path, [0.0], MediaConfig(frames=4, size=16)))
