"""Pictures, video and sound in a run's TensorBoard files.

``MediaWriter(writer, samples_seen)`` writes what a preview shows; ``show(preview, tag, clip, media)`` writes a clip.
"""

import io
import math
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import Clip

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


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

    def __init__(self, writer: "SummaryWriter", samples_seen: int) -> None:
        self._writer = writer
        self._step = samples_seen

    def image(self, tag: str, image: Tensor) -> None:
        """Write ``image``, (3, H, W); values outside of [0, 1] are clamped."""
        self._writer.add_image(tag, image.detach().float().cpu().clamp(0, 1), self._step)

    def video(self, tag: str, frames: np.ndarray, fps: float) -> None:
        """Write ``frames``, (F, H, W, 3) uint8, as an animated GIF, the one format that TensorBoard plays."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        pictures = [Image.fromarray(frame) for frame in frames]
        stream = io.BytesIO()
        pictures[0].save(stream, "GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0)
        height, width = frames.shape[1:3]
        gif = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=stream.getvalue())
        summary = Summary(value=[Summary.Value(tag=tag, image=gif)])
        self._writer._get_file_writer().add_summary(summary, self._step)

    def audio(self, tag: str, waveform: Tensor, sample_rate: int) -> None:
        """Write ``waveform``, (N,) at ``sample_rate`` Hz; values outside of [-1, 1] are clamped."""
        sound = waveform.detach().float().cpu().clamp(-1, 1)
        self._writer.add_audio(tag, sound[None], self._step, sample_rate)


def show(preview: Preview, tag: str, clip: Clip, media: MediaConfig) -> None:
    """Write ``clip`` as a grid of its frames ("TAG/pictures"), as a video ("TAG/video") and as sound ("TAG/sound")."""
    from torchvision.utils import make_grid  # slow to import, and not every training shows clips

    pictures = torch.from_numpy(clip.frames).permute(0, 3, 1, 2) / 255  # (F, 3, S, S)
    grid = make_grid(pictures, nrow=math.ceil(math.sqrt(len(pictures))), padding=0)  # (3, rows·S, columns·S)
    preview.image(f"{tag}/pictures", grid)
    preview.video(f"{tag}/video", clip.frames, media.fps)
    preview.audio(f"{tag}/sound", torch.from_numpy(clip.waveform), media.audio.sample_rate)
