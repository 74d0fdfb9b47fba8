"""Which sound track of a file with several is taken."""

import av
import numpy as np
import pytest

from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.decode import probe, read_clips
from tests.support.datasets.recordings import record

MEDIA = MediaConfig(frames=4, fps=10, size=16, audio=AudioImageConfig(sample_rate=8000, f_max=4000))


@pytest.fixture(scope="module")
def two_tracks(tmp_path_factory):
    """A film whose first track beeps at 0.6 s, and whose second, at another rate, does not."""
    folder = tmp_path_factory.mktemp("tracks")
    beeping = record(folder / "a.mkv", audio_codec="pcm_s16le")
    quiet = record(folder / "b.mkv", pictures=(), gap=(0.5, 0.8), rate=8000, audio_codec="pcm_s16le")
    with av.open(str(beeping)) as first, av.open(str(quiet)) as second, av.open(str(folder / "two.mkv"), "w") as both:
        streams = {stream: both.add_stream_from_template(stream) for stream in (*first.streams, *second.streams)}
        packets = [packet for source in (first, second) for packet in source.demux() if packet.dts is not None]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            packet.stream = streams[packet.stream]
            both.mux(packet)
    return folder / "two.mkv"


def loudest(path, number):
    (clip,) = read_clips(path, [0.5], MEDIA, audio_stream=number)
    return np.abs(clip.waveform[: 8000 // 4]).max()


def test_the_track_of_a_number_is_taken(two_tracks):
    assert [probe(two_tracks, audio_stream=number).sample_rate for number in (0, 1)] == [44100, 8000]
    assert loudest(two_tracks, 0) > 0.4
    assert loudest(two_tracks, 1) < 0.01
    assert probe(two_tracks) == probe(two_tracks, audio_stream=0)


@pytest.mark.parametrize("number", [-1, 2])
def test_a_number_that_there_is_not_is_a_reason(two_tracks, number):
    with pytest.raises(MediaError, match=r"no_such_stream: .*/two.mkv: there is no audio stream -?\d: the file has 2"):
        probe(two_tracks, audio_stream=number)


def test_a_sound_file_has_numbers_of_its_own(two_tracks):
    assert probe(two_tracks, sound=two_tracks, audio_stream=1).sample_rate == 8000


def test_a_file_without_sound_stays_one(tmp_path):
    assert not probe(record(tmp_path / "a.mp4", sound=None), audio_stream=1).has_audio
