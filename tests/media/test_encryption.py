import av
import pytest

from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.decode import probe, read_clips
from tests.support.datasets.recordings import record

MEDIA = MediaConfig(frames=4, fps=10, size=16, audio=AudioImageConfig(sample_rate=8000, f_max=4000))
CENC = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "00112233445566778899aabbccddeeff",
    "encryption_kid": "0123456789abcdef0123456789abcdef",
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return record(tmp_path_factory.mktemp("plain") / "a.mp4")


def reason(path):
    with pytest.raises(MediaError) as error:
        probe(path)
    with pytest.raises(MediaError) as again:
        next(read_clips(path, [0.0], MEDIA))
    assert again.value.reason == error.value.reason
    return error.value.reason


def test_common_encryption_is_no_damage(tmp_path):
    assert reason(record(tmp_path / "a.mp4", options=CENC)) == "encrypted"
    assert reason(record(tmp_path / "sound.mp4", pictures=(), options=CENC)) == "no_video_stream"


def test_an_encrypted_track_of_matroska_is_no_damage(plain, tmp_path):
    title = b"?" * 33
    with av.open(str(plain)) as source, av.open(str(tmp_path / "a.mkv"), "w") as copy:
        streams = {stream: copy.add_stream_from_template(stream) for stream in source.streams}
        streams[source.streams.video[0]].metadata["title"] = title.decode()
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                copy.mux(packet)
    name, key = b"\x53\x6e\xa1" + title, b"\x47\xe1\x81\x05" + b"\x47\xe2\x90" + b"k" * 16
    encryption = b"\x6d\x80\xa1" + b"\x62\x40\x9e" + b"\x50\x33\x81\x01" + b"\x50\x35\x97" + key
    data = (tmp_path / "a.mkv").read_bytes()
    assert data.count(name) == 1
    (tmp_path / "a.mkv").write_bytes(data.replace(name, encryption))
    assert reason(tmp_path / "a.mkv") == "encrypted"


def test_what_is_not_encrypted_is_read(plain):
    assert probe(plain).has_audio
