"""Pictures, video and sound that are written to TensorBoard and read back."""

import wave
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.clip import Clip
from mmldm_scale.runs.event_file import EventFile
from mmldm_scale.runs.media_log import MediaWriter, show


def read_events(folder: Path) -> EventAccumulator:
    reader = EventAccumulator(str(folder), size_guidance={"images": 0, "audio": 0})
    reader.Reload()
    return reader


def test_pictures_video_and_sound_are_read_back(tmp_path: Path) -> None:
    writer = EventFile(tmp_path)
    media = MediaWriter(writer, 10)
    frames = np.zeros((4, 8, 12, 3), np.uint8)
    frames[2, :, :, 0] = 255
    media.video("video", frames, fps=5.0)
    media.image("picture", torch.ones(3, 6, 6))
    media.audio("sound", torch.sin(torch.arange(800) / 5), 8000)
    writer.close()
    reader = read_events(tmp_path)
    assert {reader.Images(tag)[0].step for tag in ("video", "picture")} == {10}
    gif = Image.open(BytesIO(reader.Images("video")[0].encoded_image_string))
    assert (gif.n_frames, gif.size, gif.info["duration"]) == (4, (12, 8), 200) or gif.n_frames == 3  # equal ones merge
    assert Image.open(BytesIO(reader.Images("picture")[0].encoded_image_string)).size == (6, 6)
    with wave.open(BytesIO(reader.Audio("sound")[0].encoded_audio_string)) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (8000, 800)


def test_a_clip_is_shown_as_pictures_video_and_sound(tmp_path: Path) -> None:
    media = MediaConfig(frames=4, size=8, fps=4.0, audio=AudioImageConfig(sample_rate=22050))
    clip = Clip(np.full((4, 8, 8, 3), 255, np.uint8), np.zeros(22050, np.float32))
    writer = EventFile(tmp_path)
    show(MediaWriter(writer, 0), "svg/0", clip, media)
    writer.close()
    reader = read_events(tmp_path)
    assert Image.open(BytesIO(reader.Images("svg/0/pictures")[0].encoded_image_string)).size == (16, 16)
    assert reader.Images("svg/0/video")
    assert reader.Audio("svg/0/sound")
