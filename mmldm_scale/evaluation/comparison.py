"""Writes originals beside their reconstructions: one picture of several clips, and pairs of mp4 files with sound."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mmldm_scale.common.atomic_files import full_disk, write_whole
from mmldm_scale.config import MediaConfig
from mmldm_scale.evaluation.reconstructor import ClipSignals
from mmldm_scale.media.encode import write_video
from mmldm_scale.media.pixels import strips, to_frames

STRIP = "strip.png"
STRIP_FRAMES = 8  # of each clip, spread evenly over it


def write_comparison(output: Path, clips: Mapping[int, Sequence[ClipSignals]], media: MediaConfig) -> None:
    """Write ``strip.png`` and, for each clip, ``NNNNNN_original.mp4`` and ``NNNNNN_restored.mp4`` into ``output``.

    Args:
        clips: by index of the clip: its original, its reconstruction and any further versions, which only the strip
            shows. Each holds one clip, on the CPU.
        media: their format.
    """
    rows = []
    for index, versions in clips.items():
        rows += [_strip_row(signals) for signals in versions]
        for name, signals in zip(("original", "restored"), versions, strict=False):
            file = output / f"{index:06d}_{name}.mp4"
            frames, waveform = to_frames(signals.frames[0]).numpy(), signals.waveform[0].numpy()
            with full_disk(file):
                write_video(file, frames, media.fps, waveform, media.audio.sample_rate)
    strip = (strips(rows) * 255).round().byte().permute(1, 2, 0)  # (H, W, 3)
    png = io.BytesIO()
    Image.fromarray(strip.numpy()).save(png, "PNG")
    write_whole(output / STRIP, png.getvalue())


def one_clip(signals: ClipSignals, i: int) -> ClipSignals:
    """Return the ``i``-th clip of ``signals`` alone, in float32 on the CPU."""
    tensors = (signals.frames, signals.audio_image, signals.waveform)
    return ClipSignals(*(tensor[i : i + 1].float().cpu() for tensor in tensors))


def _strip_row(signals: ClipSignals) -> Tensor:
    """Return some frames of one clip and then its audio image, to be laid side by side: (N, 3, S, S)."""
    frames = signals.frames[0]
    positions = torch.linspace(0, len(frames) - 1, min(STRIP_FRAMES, len(frames))).long()
    return torch.cat([frames[positions], signals.audio_image])
