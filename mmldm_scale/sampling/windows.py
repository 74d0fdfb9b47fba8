"""The windows of a long sample: how many there are, how a given clip is cut into them, how their results are joined.

A long sample is made window after window, each as long as the model's clips. All functions here are fixed: no noise is
drawn. Where the sample ends inside its last window, that window is made whole and cut.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import NO_FRAMES, NO_SOUND, Clip

MOST_SECONDS = 600.0  # of a sample: its frames are in memory, 1.2 GB of them at 256² pixels and 10 frames per second


def sample_media(media: MediaConfig, seconds: float | None) -> MediaConfig:
    """Return the format of samples of ``seconds``, to the nearest frame; None: of one clip, ``media`` itself.

    Raises:
        UserError: ``seconds`` is shorter than a clip, or longer than MOST_SECONDS.
    """
    if seconds is None:
        return media
    if not media.seconds <= seconds <= MOST_SECONDS:
        raise UserError(
            f"--seconds {seconds:g}: must be from {media.seconds:g}, the length of the model's clips, to "
            f"{MOST_SECONDS:g}"
        )
    return replace(media, frames=max(media.frames, round(seconds * media.fps)))


def window_count(media: MediaConfig, whole: MediaConfig) -> int:
    """Return how many clips of the format ``media`` a sample of the format ``whole`` needs."""
    return -(-whole.frames // media.frames)


def cut(clip: Clip, media: MediaConfig, count: int) -> list[Clip]:
    """Return ``clip`` as ``count`` clips of the format ``media``, one behind the other.

    The end of the last one, which exceeds the clip, repeats its last frame and is silent.
    """
    parts = []
    for number in range(count):
        frames, waveform = NO_FRAMES, NO_SOUND
        if len(clip.frames):
            last = len(clip.frames) - 1
            frames = clip.frames[np.minimum(np.arange(media.frames) + number * media.frames, last)]
        if len(clip.waveform):
            start = round(number * media.seconds * media.audio.sample_rate)
            waveform = clip.waveform[start : start + media.audio_samples]
            waveform = np.pad(waveform, (0, media.audio_samples - len(waveform)))
        parts.append(Clip(frames, waveform))
    return parts


def join_frames(windows: Sequence[np.ndarray], whole: MediaConfig) -> np.ndarray:
    """Return the frames (F, H, W, 3) of a sample of the format ``whole`` from those of its windows."""
    return np.concatenate(windows)[: whole.frames] if len(windows) > 1 else windows[0]


def join_spectrograms(windows: Sequence[torch.Tensor], media: MediaConfig, whole: MediaConfig) -> torch.Tensor:
    """Return the mel magnitudes in dB, (B, n_mels, T), of samples of the format ``whole`` from those of their windows.

    A vocoder makes one sound of it, so that no phase jumps where two windows meet. Mel frame t of a window stands for
    its sample (t + 1/2) · hop. Where a window's length is no multiple of the hop, the frames of the joined spectrogram
    lie between those of the windows, and are interpolated linearly in dB.

    Args:
        windows: (B, n_mels, media.mel_frames) of each window.
    """
    if len(windows) == 1:
        return windows[0]
    hop = media.audio.hop_length
    centres = (np.arange(media.mel_frames) + 0.5) * hop  # in samples from the beginning of the window
    length = media.seconds * media.audio.sample_rate
    known = np.concatenate([number * length + centres for number in range(len(windows))])  # (K,), ascending
    wanted = np.clip((np.arange(whole.mel_frames) + 0.5) * hop, known[0], known[-1])  # (T,)
    after = np.clip(np.searchsorted(known, wanted), 1, len(known) - 1)
    share = torch.from_numpy((wanted - known[after - 1]) / (known[after] - known[after - 1])).to(windows[0])
    levels = torch.cat(list(windows), dim=2)  # (B, n_mels, K)
    earlier, later = (torch.from_numpy(index).to(levels.device) for index in (after - 1, after))
    return torch.lerp(levels[..., earlier], levels[..., later], share)
