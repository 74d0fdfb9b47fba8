"""Sounds and videos as diffusers' users have them, arrays, tensors, pictures or files, as the model takes them.

:func:`sounds` and :func:`videos` return one array for each sample. The beginning is used, as long as a clip. Files are
read as ``mmldm sample --input`` reads them, which needs the package ``mmldm_scale``.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from PIL import Image, ImageOps

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import NO_FRAMES, Clip, MediaError


def sounds(audio: Any, media: MediaConfig, sampling_rate: float | None = None) -> list[np.ndarray]:
    """Return the waveforms (N,) float32 in ``audio``, N = ``media.audio_samples``.

    Args:
        audio: one sound or a list of them. A sound is an array or tensor (samples,) or (channels, samples) in [-1, 1],
            a clip, or the path of a file. A single array of two dimensions is a batch of mono sounds, (B, samples).
        sampling_rate: of arrays, in Hz; None: that of the model, ``media.audio.sample_rate``.

    Raises:
        UserError: a sound is shorter than a clip, of another form, or a file that cannot be read.
    """
    if not isinstance(audio, list | tuple):
        audio = list(audio) if _is_array(audio) and audio.ndim > 1 else [audio]
    return [_sound(one, media, sampling_rate, f"audio[{i}]") for i, one in enumerate(audio)]


def videos(video: Any, media: MediaConfig) -> list[np.ndarray]:
    """Return the frames (F, S, S, 3) uint8 of the videos in ``video``, F = ``media.frames``, S = ``media.size``.

    Arrays and pictures have the model's frame rate, ``media.fps``. They are scaled to S, cropped or padded as the
    model's clips are.

    Args:
        video: one video or a list of them. A video is a list of PIL pictures, an array (frames, H, W, 3), a tensor
            (frames, 3, H, W), a clip, or the path of a file. An array or tensor of one more dimension is a batch.
            Values are uint8, or floats in [0, 1].

    Raises:
        UserError: a video has too few frames or another form, or is a file that cannot be read.
    """
    if _is_array(video) and video.ndim == 5:
        video = list(video)
    elif not isinstance(video, list | tuple) or all(isinstance(part, Image.Image) for part in video):
        video = [video]
    return [_video(one, media, f"video[{i}]") for i, one in enumerate(video)]


def _sound(sound: Any, media: MediaConfig, rate: float | None, name: str) -> np.ndarray:
    if isinstance(sound, Clip):
        sound = sound.waveform
    elif isinstance(sound, str | os.PathLike):
        return _read(Path(sound), media, "audio").waveform
    elif not _is_array(sound) or sound.ndim not in (1, 2):
        raise UserError(f"{name}: {_form(sound)}: must be an array (samples,) or (channels, samples), or a path")
    wave = torch.as_tensor(sound).detach().cpu()
    if not wave.is_floating_point():
        raise UserError(f"{name}: values of type {wave.dtype}: must be floats in [-1, 1]")
    wave = wave.float().mean(0) if wave.ndim == 2 else wave.float()
    own = media.audio.sample_rate
    if rate and rate != own:
        wave = torchaudio.functional.resample(wave, round(rate), own)
    if len(wave) < media.audio_samples:
        raise UserError(f"{name}: {len(wave) / own:.3f} s: must be at least {media.seconds:g} s, a clip of the model")
    return wave[: media.audio_samples].clamp(-1, 1).numpy()


def _video(video: Any, media: MediaConfig, name: str) -> np.ndarray:
    if isinstance(video, Clip):
        video = video.frames
    elif isinstance(video, str | os.PathLike):
        return _read(Path(video), media, "video").frames
    pictures = _pictures(video, name)
    if len(pictures) < media.frames:
        wanted = f"{media.frames}, a clip of the model ({media.fps:g} frames/s)"
        raise UserError(f"{name}: {len(pictures)} frames: must be at least {wanted}")
    return np.stack([_fitted(picture, media) for picture in pictures[: media.frames]])


def _pictures(video: Any, name: str) -> list[Image.Image]:
    """Return the pictures of a ``video`` that is a list of PIL pictures, an array or a tensor."""
    if isinstance(video, list | tuple) and video and all(isinstance(part, Image.Image) for part in video):
        return [part.convert("RGB") for part in video]
    if not _is_array(video) or video.ndim != 4:
        raise UserError(
            f"{name}: {_form(video)}: must be a list of PIL pictures, an array (frames, H, W, 3), a tensor "
            "(frames, 3, H, W) or a path"
        )
    frames = video.detach().cpu().movedim(1, -1).numpy() if isinstance(video, torch.Tensor) else video
    if frames.shape[-1] != 3:
        raise UserError(f"{name}: {_form(video)}: must have 3 channels, last in an array, second in a tensor")
    if frames.dtype != np.uint8:
        if not (np.issubdtype(frames.dtype, np.floating) and frames.min() >= 0 and frames.max() <= 1):
            raise UserError(f"{name}: values must be uint8, or floats in [0, 1]")
        frames = (frames * 255).round().astype(np.uint8)
    return [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]


def _fitted(picture: Image.Image, media: MediaConfig) -> np.ndarray:
    """Return ``picture`` as (S, S, 3) uint8."""
    size = (media.size, media.size)
    if picture.size != size:
        fit = ImageOps.fit if media.fit == "crop" else ImageOps.pad
        picture = fit(picture, size, Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _read(file: Path, media: MediaConfig, given: Any) -> Clip:
    """Return the clip at the beginning of ``file``, of which ``given`` is needed."""
    try:
        from mmldm_scale.media.decode import has_picture, read_clips, read_sound
    except ImportError:
        raise UserError(f"{file}: to read files, install mmldm_scale; or pass an array") from None
    try:
        if given == "audio" and not has_picture(file):
            return Clip(NO_FRAMES, read_sound(file, media))
        clip = next(read_clips(file, [0.0], media, given == "audio"))
        if isinstance(clip, MediaError):
            raise clip
    except MediaError as error:
        raise UserError(f"{error.detail} ({error.reason})") from None
    return clip


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | torch.Tensor)


def _form(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if _is_array(value) else type(value).__name__


def one_for_each(name: str, values: Sequence[Any], count: int, repeats: int) -> list[Any]:
    """Return ``values`` for ``count`` prompts of ``repeats`` samples each; a single one is that of all prompts.

    Raises:
        ValueError: there are neither 1 nor ``count``.
    """
    if len(values) not in (1, count):
        raise ValueError(f"{name}: {len(values)} values: must be 1 or {count}, one for each prompt")
    return [value for value in values for _ in range(repeats * count // len(values))]
