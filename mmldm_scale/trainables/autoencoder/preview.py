"""Clips and the autoencoder's reconstructions of them, shown while it trains (``training.preview_every``)."""

import numpy as np
import torch
from torch import Tensor

from mmldm_scale.common import rng
from mmldm_scale.config import DecodingConfig, MediaConfig
from mmldm_scale.media.audio_image import AudioImage, frame_signals, waveforms
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.pixels import strips, to_frames
from mmldm_scale.media.vocoder import load_vocoder
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.runs.media_log import Preview
from mmldm_scale.trainables.clip_stream import Clips

SHOWN_CLIPS = 2
SHOWN_FRAMES = 8  # of each clip in the picture strip, at most


def show(decoding: DecodingConfig, clips: Clips, model: Autoencoder, audio_image: AudioImage, preview: Preview) -> None:
    """Show clips of the set and their reconstructions: pictures and video, audio image and sound, as far as present."""
    device = next(model.decoder.parameters()).device
    for number, clip in enumerate(clips.spread(SHOWN_CLIPS)):
        has_audio, has_video = ("audio" in model.modalities), ("video" in model.modalities)
        frames = frame_signals([clip], device) if has_video else None
        audio = audio_image.encode(waveforms([clip], device)) if has_audio else None
        random = rng.generator(0, "autoencoder/preview", number)
        audio_noise = _normal(random, (1, *model.noise_shape)).to(device) if has_audio else None
        video_noise = _normal(random, (1, len(clip.frames), *model.noise_shape)).to(device) if has_video else None
        means = model.encode(frames, audio).means
        restored, restored_audio = model.decode(*means, audio_noise, video_noise, decoding)
        if frames is not None and restored is not None:
            _show_frames(preview, f"clip_{number}", frames, restored, clips.media)
        if audio is not None and restored_audio is not None:
            _show_sound(preview, f"clip_{number}", clip, audio, restored_audio, audio_image)


def _show_frames(preview: Preview, tag: str, frames: Tensor, restored: Tensor, media: MediaConfig) -> None:
    """Show the frames of a clip and those ``restored``, (1, F, 3, S, S) each."""
    shown = torch.linspace(0, frames.shape[1] - 1, min(SHOWN_FRAMES, frames.shape[1])).long()
    preview.image(f"{tag}/frames_original_above_restored", strips([frames[0, shown], restored[0, shown]]))
    preview.video(f"{tag}/restored", to_frames(restored[0]).cpu().numpy(), media.fps)


def _show_sound(
    preview: Preview, tag: str, clip: Clip, image: Tensor, restored: Tensor, audio_image: AudioImage
) -> None:
    """Show the audio image of ``clip`` and the one ``restored``, (1, 3, S, S) each, and their sound."""
    preview.image(f"{tag}/sound_original_beside_restored", strips([torch.cat([image, restored])]))
    vocoder, rate = load_vocoder(None, audio_image.audio), audio_image.audio.sample_rate
    sound = vocoder(audio_image.to_decibels(restored), len(clip.waveform))[0]  # (1, N) -> (N,)
    preview.audio(f"{tag}/sound_original", torch.from_numpy(clip.waveform), rate)
    preview.audio(f"{tag}/sound_restored", sound.cpu(), rate)


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal numbers of ``shape``, float32."""
    return torch.from_numpy(random.standard_normal(shape, dtype=np.float32))
