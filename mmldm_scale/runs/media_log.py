"""Pictures, video and sound in a run's TensorBoard files.

``MediaWriter(events, samples_seen)`` writes what a preview shows; ``show(preview, tag, clip, media)`` writes a clip.
"""

import io
import math
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import summary

from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import Clip
from mmldm_scale.runs.event_file import EventFile


class Preview(Protocol):
    """What a trainable writes its previews to; :class:`MediaWriter` in a run, another object in tests."""

    def image(self, tag: str, image: Tensor) -> None:
        """Write ``image``, (3, H, W) in [0, 1]."""

    def video(self, tag: str, frames: np.ndarray, fps: float) -> None:
        """Write ``frames``, (F, H, W, 3) uint8, as a video of ``fps`` frames per second."""

    def audio(self, tag: str, waveform: Tensor, sample_rate: int) -> None:
        """Write ``waveform``, (N,) in [-1, 1] at ``sample_rate`` Hz."""


class MediaWriter:
    """A :class:`Preview` that writes to TensorBoard, everything at the step ``samples_seen``."""

    def __init__(self, events: EventFile, samples_seen: int) -> None:
        self._events, self._samples_seen = events, samples_seen

    def image(self, tag: str, image: Tensor) -> None:
        """Write ``image``, (3, H, W); values outside of [0, 1] are clamped."""
        pixels = image.detach().float().cpu().clamp(0, 1)
        self._add(summary.image(tag, pixels, dataformats="CHW"))

    def video(self, tag: str, frames: np.ndarray, fps: float) -> None:
        """Write ``frames``, (F, H, W, 3) uint8, as an animated GIF, the one format that TensorBoard plays."""
        pictures = [Image.fromarray(frame) for frame in frames]
        stream = io.BytesIO()
        pictures[0].save(stream, "GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0)
        height, width = frames.shape[1:3]
        gif = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=stream.getvalue())
        self._add(Summary(value=[Summary.Value(tag=tag, image=gif)]))

    def audio(self, tag: str, waveform: Tensor, sample_rate: int) -> None:
        """Write ``waveform``, (N,) at ``sample_rate`` Hz; values outside of [-1, 1] are clamped."""
        sound = waveform.detach().float().cpu().clamp(-1, 1)
        self._add(summary.audio(tag, sound[None], sample_rate))

    def _add(self, content: Summary) -> None:
        self._events.add(content, self._samples_seen)
        self._events.flush()


def show(preview: Preview, tag: str, clip: Clip, media: MediaConfig) -> None:
    """Write ``clip`` as a grid of its frames ("TAG/pictures"), as a video ("TAG/video") and as sound ("TAG/sound").

    What the clip does not have, frames or sound, is left out.
    """
    if len(clip.frames):
        from torchvision.utils import make_grid  # slow to import, and not every training shows clips

        pictures = torch.from_numpy(clip.frames).permute(0, 3, 1, 2) / 255  # (F, 3, S, S)
        grid = make_grid(pictures, nrow=math.ceil(math.sqrt(len(pictures))), padding=0)  # (3, rows·S, columns·S)
        preview.image(f"{tag}/pictures", grid)
        preview.video(f"{tag}/video", clip.frames, media.fps)
    if len(clip.waveform):
        preview.audio(f"{tag}/sound", torch.from_numpy(clip.waveform), media.audio.sample_rate)
