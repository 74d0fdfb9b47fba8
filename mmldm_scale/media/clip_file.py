"""A clip as a file to play: MP4, with or without sound, or WAV where there are no frames."""

from collections.abc import Collection
from pathlib import Path

from mmldm_scale.common.modalities import Modality
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.encode import write_video
from mmldm_scale.media.wav import write_wav


def suffix(modalities: Collection[Modality]) -> str:
    """Return the suffix of the file of a clip that has ``modalities``."""
    return ".mp4" if "video" in modalities else ".wav"


def write_clip(file: Path, clip: Clip, media: MediaConfig) -> None:
    """Write ``clip``, in the format ``media``, to ``file``, whole or not at all; its :func:`suffix` is the caller's."""
    rate = media.audio.sample_rate
    if not len(clip.frames):
        write_wav(file, clip.waveform, rate)
    elif not len(clip.waveform):
        write_video(file, clip.frames, media.fps)
    else:
        write_video(file, clip.frames, media.fps, clip.waveform, rate)
