"""Clips as files to play: with sound, without sound, and sound alone."""

import wave
from pathlib import Path

import numpy as np
import pytest

from mmldm_scale.media.clip import NO_FRAMES, NO_SOUND, Clip
from mmldm_scale.media.clip_file import suffix, write_clip
from mmldm_scale.media.decode import probe
from mmldm_scale.media.wav import decode_wav
from tests.support.tiny_models.tiny_autoencoder import MEDIA

FRAMES = np.full((MEDIA.frames, MEDIA.size, MEDIA.size, 3), 90, np.uint8)
SOUND = (0.5 * np.sin(np.arange(MEDIA.audio_samples) / 3)).astype(np.float32)


@pytest.mark.parametrize(("clip", "has_audio"), [(Clip(FRAMES, SOUND), True), (Clip(FRAMES, NO_SOUND), False)])
def test_frames_become_a_video_with_the_sound_that_there_is(tmp_path: Path, clip: Clip, has_audio: bool) -> None:
    write_clip(tmp_path / f"clip{suffix(['video'])}", clip, MEDIA)
    info = probe(tmp_path / "clip.mp4")
    assert (info.width, info.height, info.has_audio) == (MEDIA.size, MEDIA.size, has_audio)


def test_sound_alone_becomes_a_wav_file_of_16_bits(tmp_path: Path) -> None:
    file = tmp_path / f"clip{suffix(['audio'])}"
    write_clip(file, Clip(NO_FRAMES, SOUND), MEDIA)
    with wave.open(str(file)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, MEDIA.audio.sample_rate)
        levels = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
    np.testing.assert_array_equal(levels, np.round(SOUND * 32768))
    np.testing.assert_allclose(decode_wav(file.read_bytes()), SOUND, atol=0.5 / 32768)
