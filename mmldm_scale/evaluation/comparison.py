"""Writes originals beside their reconstructions: one picture of several clips, and pairs of files to play."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mmldm_scale.common.atomic_files import full_disk, write_whole
from mmldm_scale.config import MediaConfig
from mmldm_scale.evaluation.reconstructor import ClipSignals
from mmldm_scale.media.clip import NO_FRAMES, NO_SOUND, Clip
from mmldm_scale.media.clip_file import write_clip
from mmldm_scale.media.pixels import strips, to_frames

STRIP = "strip.png"
STRIP_FRAMES = 8  # of each clip, spread evenly over it


def write_comparison(output: Path, clips: Mapping[int, Sequence[ClipSignals]], media: MediaConfig) -> None:
    """Write ``strip.png`` and, for each clip, ``NNNNNN_original.mp4`` and ``NNNNNN_restored.mp4`` into ``output``.

    They are .wav files where the autoencoder has sound alone, and without sound where it has none.

    Args:
        clips: by index of the clip: its original, its reconstruction and any further versions, which only the strip
            shows. Each holds one clip, on the CPU.
        media: their format.
    """
    rows = []
    for index, versions in clips.items():
        rows += [_strip_row(signals) for signals in versions]
        for name, signals in zip(("original", "restored"), versions, strict=False):
            clip = as_clip(signals)
            file = output / f"{index:06d}_{name}{'.mp4' if len(clip.frames) else '.wav'}"
            with full_disk(file):
                write_clip(file, clip, media)
    strip = (strips(rows) * 255).round().byte().permute(1, 2, 0)  # (H, W, 3)
    png = io.BytesIO()
    Image.fromarray(strip.numpy()).save(png, "PNG")
    write_whole(output / STRIP, png.getvalue())


def one_clip(signals: ClipSignals, i: int) -> ClipSignals:
    """Return the ``i``-th clip of ``signals`` alone, in float32 on the CPU."""
    return ClipSignals(**{name: signal[i : i + 1].float().cpu() for name, signal in signals.present.items()})


def as_clip(signals: ClipSignals) -> Clip:
    """Return the one clip of ``signals``, without frames or without sound where there are none."""
    frames = NO_FRAMES if signals.frames is None else to_frames(signals.frames[0]).numpy()
    return Clip(frames, NO_SOUND if signals.waveform is None else signals.waveform[0].numpy())


def _strip_row(signals: ClipSignals) -> Tensor:
    """Return some frames of one clip and then its audio image, to be laid side by side: (N, 3, S, S)."""
    row = []
    if signals.frames is not None:
        frames = signals.frames[0]
        row.append(frames[torch.linspace(0, len(frames) - 1, min(STRIP_FRAMES, len(frames))).long()])
    if signals.audio_image is not None:
        row.append(signals.audio_image)
    return torch.cat(row)
