"""The logger of a run, on rank 0: TensorBoard, ``log.jsonl``, and one line on the terminal for each record.

    logger = Logger(run, samples_seen, total_samples)
    logger.scalars(samples_seen, {"loss": 0.5})

All values are logged against ``samples_seen``. A run that resumes removes the records beyond its checkpoint, so that a
curve has each step once, however often the run was killed.
"""

import io
import json
import math
import re
import sys
import time
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import Clip
from mmldm_scale.runs import run_log
from mmldm_scale.training.checkpoint.async_writer import FULL
from mmldm_scale.training.monitoring import charts
from mmldm_scale.training.trainable import Preview

BUFFER_SIZE = 1 << 20  # bytes of log.jsonl that are held in memory while the disk is full
PRINTED_TAGS = re.compile(r"(validation/)?loss(/.*)?")


class MediaWriter:
    """Writes images, videos and audio of one moment to TensorBoard; a ``training.trainable.Preview``."""

    def __init__(self, writer: SummaryWriter, samples_seen: int) -> None:
        self._writer = writer
        self._step = samples_seen

    def image(self, tag: str, image: Tensor) -> None:
        """Show ``image``, (3, H, W) in [0, 1]."""
        self._writer.add_image(tag, image.detach().float().cpu().clamp(0, 1), self._step)

    def video(self, tag: str, frames: np.ndarray, fps: float) -> None:
        """Show ``frames``, (F, H, W, 3) uint8, as an animated GIF, the only video format that TensorBoard plays."""
        pictures: list[Image.Image] = [Image.fromarray(frame) for frame in frames]
        stream = io.BytesIO()
        pictures[0].save(stream, "GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0)
        height, width = frames.shape[1:3]
        gif = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=stream.getvalue())
        summary = Summary(value=[Summary.Value(tag=tag, image=gif)])
        self._writer._get_file_writer().add_summary(summary, self._step)

    def audio(self, tag: str, waveform: Tensor, sample_rate: int) -> None:
        """Show ``waveform``, (N,) in [-1, 1] at ``sample_rate`` Hz."""
        sound = waveform.detach().float().cpu().clamp(-1, 1)
        self._writer.add_audio(tag, sound[None], self._step, sample_rate)


def show(preview: Preview, tag: str, clip: Clip, media: MediaConfig) -> None:
    """Show ``clip`` as a grid of its frames, row by row, as a video and as audio, under ``tag``."""
    from torchvision.utils import make_grid  # slow to import, and needed only where clips are shown

    pictures = torch.from_numpy(clip.frames).permute(0, 3, 1, 2) / 255  # (F, 3, S, S)
    square = make_grid(pictures, nrow=math.ceil(math.sqrt(len(pictures))), padding=0)  # (3, rows·S, columns·S)
    preview.image(f"{tag}/pictures", square)
    preview.video(f"{tag}/video", clip.frames, media.fps)
    preview.audio(f"{tag}/sound", torch.from_numpy(clip.waveform), media.audio.sample_rate)


class Logger:
    """Logs scalars and media of the run folder ``run`` from ``samples_seen`` on; make it when the first step begins."""

    def __init__(self, run: Path, samples_seen: int, total_samples: int) -> None:
        self._file, self._samples_seen = run / run_log.LOG, samples_seen
        self._log: TextIO | None = None
        self._writer = SummaryWriter(run / "tensorboard", purge_step=samples_seen + 1)
        self._total = total_samples
        self._charted: set[str] = set()
        self._start = (samples_seen, time.monotonic())
        before, now = list(run_log.read(run)), time.time()
        first_starts: list[float] = [record.get(run_log.FIRST_START) or record["time"] for record in before]
        first = min(first_starts, default=now)
        self._times = {run_log.START: now, run_log.FIRST_START: first}
        self._goodput = run_log.Goodput()
        for record in before:
            if record["samples_seen"] <= samples_seen:
                self._goodput.add(record)
        if not before:
            self._log = self._open()

    def scalars(self, samples_seen: int, values: dict[str, float]) -> None:
        """Log ``values``, all finite, and the run's goodput and progress; print the losses and the time left."""
        record = {"samples_seen": samples_seen, "time": time.time(), **self._times, **values}
        self._goodput.add(record)
        values = {**values, "speed/goodput": self._goodput.share, "speed/progress": samples_seen / self._total}
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, samples_seen)
        if not values.keys() <= self._charted:  # of the first record, and of the first one with a validation
            self._charted |= values.keys()
            self._writer.add_custom_scalars(charts.layout(self._charted))
        if self._log is None:
            self._log = self._open()
        self._log.write(json.dumps(record | values) + "\n")
        _flush(self._log)
        self._print(samples_seen, values)

    def media(self, samples_seen: int) -> MediaWriter:
        """Return the writer for a preview at ``samples_seen``."""
        return MediaWriter(self._writer, samples_seen)

    def close(self) -> None:
        """Write what is buffered, and close the files."""
        self._writer.close()
        if self._log:
            self._log.close()

    def _open(self) -> TextIO:
        """Open ``log.jsonl`` without the records beyond the start.

        This waits for the first new record: until then only the old ones may hold the time of the run's first start.
        """
        _remove_records_after(self._file, self._samples_seen)
        return self._file.open("a", buffering=BUFFER_SIZE)

    def _print(self, samples_seen: int, values: dict[str, float]) -> None:
        start, began = self._start
        rate = (samples_seen - start) / max(time.monotonic() - began, 1e-9)
        left = (self._total - samples_seen) / rate if rate else float("inf")
        losses = " ".join(f"{tag} {value:.4f}" for tag, value in values.items() if PRINTED_TAGS.fullmatch(tag))
        print(
            f"{samples_seen:,}/{self._total:,} samples  {losses}  {values.get('speed/samples_per_second', 0):.1f}/s  "
            f"{left / 60:.1f} min left",
            file=sys.stderr,
            flush=True,
        )


def _flush(log: TextIO) -> None:
    """Write buffered lines to disk; while the disk is full they stay buffered, since a checkpoint may be removed."""
    try:
        log.flush()
    except OSError as error:
        if error.errno not in FULL:
            raise


def _remove_records_after(log: Path, samples_seen: int) -> None:
    """Remove the records of ``log`` beyond ``samples_seen``, and an incomplete last line."""
    if not log.exists():
        return
    lines = log.read_text(errors="replace").splitlines()
    records = zip(lines, map(run_log.parse, lines), strict=True)
    remaining = [line + "\n" for line, record in records if record and record["samples_seen"] <= samples_seen]
    write_whole(log, "".join(remaining).encode())
