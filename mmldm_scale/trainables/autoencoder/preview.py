"""Clips and the autoencoder's reconstructions of them, shown while it trains (``training.preview_every``)."""

import numpy as np
import torch
from torch import Tensor

from mmldm_scale.common import rng
from mmldm_scale.media.audio_image import signals
from mmldm_scale.media.pixels import strips, to_frames
from mmldm_scale.media.vocoder import load_vocoder
from mmldm_scale.runs.media_log import Preview
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.autoencoder.loss import Reconstruction
from mmldm_scale.trainables.clip_stream import Clips

SHOWN_CLIPS = 2
SHOWN_FRAMES = 8  # of each clip in the picture strip, at most


def show(config: AutoencoderTraining, clips: Clips, module: Reconstruction, preview: Preview) -> None:
    """Show clips of the set and their reconstructions: pictures, video, audio image and sound."""
    model, device = module.autoencoder, next(module.parameters()).device
    vocoder = load_vocoder(None, clips.media.audio)
    for number, clip in enumerate(clips.spread(SHOWN_CLIPS)):
        frames, audio = signals([clip], module.audio_image, device)
        posteriors = model.encode(frames, audio)
        random = rng.generator(0, "autoencoder/preview", number)
        audio_noise = _normal(random, (1, *model.noise_shape)).to(device)
        video_noise = _normal(random, (1, len(clip.frames), *model.noise_shape)).to(device)
        restored, restored_audio = model.decode(
            posteriors.audio.mean, posteriors.video.mean, audio_noise, video_noise, config.preview
        )
        shown = torch.linspace(0, len(clip.frames) - 1, min(SHOWN_FRAMES, len(clip.frames))).long()
        preview.image(f"clip_{number}/frames_original_above_restored", strips([frames[0, shown], restored[0, shown]]))
        preview.image(f"clip_{number}/sound_original_beside_restored", strips([torch.cat([audio, restored_audio])]))
        preview.video(f"clip_{number}/restored", to_frames(restored[0]).cpu().numpy(), clips.media.fps)
        sound = vocoder(module.audio_image.to_decibels(restored_audio), len(clip.waveform))[0]  # (1, N) -> (N,)
        rate = clips.media.audio.sample_rate
        preview.audio(f"clip_{number}/sound_original", torch.from_numpy(clip.waveform), rate)
        preview.audio(f"clip_{number}/sound_restored", sound.cpu(), rate)


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal numbers of ``shape``, float32."""
    return torch.from_numpy(random.standard_normal(shape, dtype=np.float32))
