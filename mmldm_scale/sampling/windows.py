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


def noise_stream(window: int) -> str:
    """Return what the names of the noise streams of a window end with; nothing for the first one of a sample."""
    return f"/window/{window}" if window else ""


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

    The models' spectrograms are those of clips mirrored at both ends. There a tone has a kink, and the frames that
    reach over the end have a click of up to 40 dB in the other bands. So they are limited to the line, in dB, between
    the nearest frames on both sides that do not reach over it (ours).

    Args:
        windows: (B, n_mels, media.mel_frames) of each window.
    """
    if len(windows) == 1:
        return windows[0]
    hop, reach = media.audio.hop_length, media.audio.n_fft / 2
    centres = (np.arange(media.mel_frames) + 0.5) * hop  # in samples from the beginning of the window
    length = media.seconds * media.audio.sample_rate
    starts = np.arange(len(windows))[:, None] * length
    known = (starts + centres).flatten()  # (K,), ascending
    wanted = np.clip((np.arange(whole.mel_frames) + 0.5) * hop, known[0], known[-1])  # (T,)
    levels = torch.cat(list(windows), dim=2)  # (B, n_mels, K)
    joints = starts[1:, 0]
    clear = (np.abs(known[:, None] - joints) >= reach).all(axis=1)  # (K,)
    if not clear[[0, -1]].all():  # windows of hardly more than a frame
        return _between(levels, known, wanted)
    ceiling = _between(levels[..., torch.from_numpy(clear)], known[clear], wanted)
    near = torch.from_numpy((np.abs(wanted[:, None] - joints) < reach + hop).any(axis=1)).to(levels.device)
    joined = _between(levels, known, wanted)
    return torch.where(near, torch.minimum(joined, ceiling), joined)


def _between(levels: torch.Tensor, known: np.ndarray, wanted: np.ndarray) -> torch.Tensor:
    """Return (B, n, T): ``levels`` (B, n, K) at the times ``known`` (K,), at the times ``wanted`` (T,), linearly."""
    after = np.clip(np.searchsorted(known, wanted), 1, len(known) - 1)
    share = torch.from_numpy((wanted - known[after - 1]) / (known[after] - known[after - 1])).to(levels)
    earlier, later = (torch.from_numpy(index).to(levels.device) for index in (after - 1, after))
    return torch.lerp(levels[..., earlier], levels[..., later], share)
