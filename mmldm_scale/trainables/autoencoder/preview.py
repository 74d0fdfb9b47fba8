"""Clips beside what the autoencoder makes of them, shown while it trains (``training.preview_every``)."""

import numpy as np
import torch
from torch import Tensor

from mmldm_scale.common import rng
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.audio_image import signals
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.pixels import strips, to_frames
from mmldm_scale.media.vocoder import load_vocoder
from mmldm_scale.runs.media_log import Preview
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.autoencoder.loss import Reconstruction
from mmldm_scale.trainables.clip_stream import Clips

SHOWN_CLIPS = 2
SHOWN_FRAMES = 8  # of each clip in a strip


def show(config: AutoencoderTraining, clips: Clips, module: Reconstruction, preview: Preview) -> None:
    """Show clips of the set beside what the autoencoder makes of them: pictures, video, audio image and sound."""
    model, device = module.autoencoder, next(module.parameters()).device
    vocoder = load_vocoder(None, clips.media.audio)
    for number, clip in enumerate(clips.spread(SHOWN_CLIPS)):
        frames, audio = signals([clip], module.audio_image, device)
        means = model.encode(frames, audio)
        random = rng.generator(0, "autoencoder/preview", number)
        shapes = (1, *model.noise_shape), (1, len(clip.frames), *model.noise_shape)
        noise = [torch.from_numpy(random.standard_normal(shape, dtype=np.float32)).to(device) for shape in shapes]
        restored, sound = model.decode(means.audio.mean, means.video.mean, *noise, config.preview)
        shown = torch.linspace(0, len(clip.frames) - 1, min(SHOWN_FRAMES, len(clip.frames))).long()
        preview.image(f"clip_{number}/frames_original_above_restored", strips([frames[0, shown], restored[0, shown]]))
        preview.image(f"clip_{number}/sound_original_beside_restored", strips([torch.cat([audio, sound])]))
        preview.video(f"clip_{number}/restored", to_frames(restored[0]).cpu().numpy(), clips.media.fps)
        _listen(
            preview, number, clip, vocoder(module.audio_image.to_decibels(sound), len(clip.waveform))[0], clips.media
        )


def _listen(preview: Preview, number: int, clip: Clip, restored: Tensor, media: MediaConfig) -> None:
    preview.audio(f"clip_{number}/sound_original", torch.from_numpy(clip.waveform), media.audio.sample_rate)
    preview.audio(f"clip_{number}/sound_restored", restored.cpu(), media.audio.sample_rate)
