"""``mmldm seams``: how much long samples jump where two windows meet, beside how much they change inside windows.

Of the picture it is the mean length of the optical flow from each frame to the next (Farneback's, as for AV-Align).
Where OpenCV is not installed, or frames are too small for it, it is the mean absolute difference of their pixels, which
the report names so. Of the sound it is the spectral flux: the mean change of the log-mel levels from one block of 50 ms
to the next. A joint's value is the one across it. The report has the mean over joints, the mean inside windows, and the
share of values inside that are at least as large as the joints' mean: joints that nobody can find have about the share
of an average place, joints that stand out have nearly 0.
"""

import argparse
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.clip_sets.sampled_folder import SampledFolder, samples_by_task
from mmldm_scale.evaluation.metrics.motion import SMALLEST_SIDE, flow_magnitude
from mmldm_scale.media.clip import MediaError

REPORT, PICTURE = "seams.json", "seams.png"
BLOCK = 0.05  # s: of the flux, one value each
MEL_BANDS = 40
SILENCE_DB = -60.0  # levels of bands below it, in dB of full scale, count as equal
WIDTH, HEIGHT, MARGIN = 960, 140, 20  # pixels of a curve in the picture, and of the space above and below


@dataclass(frozen=True)
class Curve:
    """One measure of one sample over time: ``values[i]`` is the change at (i + 1) · ``step`` seconds."""

    measure: str
    step: float
    values: np.ndarray  # (n,) float64

    def at_joints(self, window: float) -> np.ndarray:
        """Return (n,) bool: which values are those across joints, at multiples of ``window`` seconds."""
        times = (np.arange(len(self.values)) + 1) * self.step
        return np.abs(times - window * np.round(times / window)) < self.step / 2 - 1e-9


def run(args: argparse.Namespace) -> int:
    """Measure the samples in ``args.folder``; write seams.json and seams.png there, print a line a measure; return 0.

    Raises:
        UserError: there are no long samples, or one is damaged.
    """
    samples, window = _read(args.folder)
    curves = [curve for sample in samples for curve in measure(sample)]
    seams: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(curve.measure for curve in curves):
        seam = seams[name] = compare([curve for curve in curves if curve.measure == name], window)
        print(f"{name}: {seam['joints']:.4g} at joints, {seam['inside']:.4g} inside windows, share {seam['share']:.2f}")
    report = {"samples": [sample.name for sample in samples], "window_seconds": window, "measures": seams}
    write_whole(args.folder / REPORT, json.dumps(report, indent=1).encode() + b"\n")
    _draw(args.folder / PICTURE, samples[0].name, measure(samples[0]), window)
    print(f"{args.folder}: seams of {len(samples)} samples; {REPORT} and {PICTURE} have them")
    return 0


def compare(curves: Sequence[Curve], window: float) -> dict[str, float]:
    """Return the mean of ``curves`` at joints, their mean inside windows, and the share of values inside that are at
    least as large as the first mean.
    """
    masks = [curve.at_joints(window) for curve in curves]
    joints = np.concatenate([curve.values[mask] for curve, mask in zip(curves, masks, strict=True)])
    inside = np.concatenate([curve.values[~mask] for curve, mask in zip(curves, masks, strict=True)])
    return {
        "joints": float(joints.mean()),
        "inside": float(inside.mean()),
        "share": float((inside >= joints.mean()).mean()),
    }


def measure(sample: ClipRecord) -> list[Curve]:
    """Return the curves of what ``sample`` has: picture, sound or both."""
    curves = []
    frames, waveform = sample.clip.frames, sample.clip.waveform
    if len(frames):
        if find_spec("cv2") and min(frames.shape[1:3]) >= SMALLEST_SIDE:
            curves.append(Curve("optical flow (pixels)", 1 / sample.frame_rate, flow_magnitude(frames)))
        else:
            change = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
            curves.append(Curve("frame difference (levels of 255)", 1 / sample.frame_rate, change))
    if len(waveform):
        curves.append(Curve("spectral flux (dB)", BLOCK, spectral_flux(waveform, sample.sample_rate)))
    return curves


def spectral_flux(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the mean absolute change of mel levels, in dB, from each block of 50 ms to the next: (n - 1,) float64.

    A block's level is that of its own samples: no value but the one across a joint sees both sides of it.
    """
    size = round(BLOCK * sample_rate)
    count = len(waveform) // size
    blocks = waveform[: count * size].reshape(count, size).astype(np.float64) * np.hanning(size)
    power = np.abs(np.fft.rfft(blocks)) ** 2 / (size / 4) ** 2  # of a sine of full scale: 1
    edges = np.geomspace(1, power.shape[1], MEL_BANDS + 1).astype(int)
    bands = [power[:, low : max(high, low + 1)].sum(1) for low, high in pairwise(edges)]
    levels = 10 * np.log10(np.maximum(np.stack(bands, 1), 10 ** (SILENCE_DB / 10)))  # (count, MEL_BANDS)
    return np.abs(np.diff(levels, axis=0)).mean(axis=1)


def _read(folder: Path) -> tuple[list[ClipRecord], float]:
    """Return the long samples in ``folder``, of all tasks, and the length of their windows in seconds."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; must be one that mmldm sample --seconds filled")
    samples: list[ClipRecord] = []
    windows: set[float] = set()
    for task in samples_by_task(folder):
        files = SampledFolder(str(folder), folder, task)
        for index in range(len(files)):
            try:
                window = files.info(index).get("window_seconds")
                if isinstance(window, int | float) and window > 0:
                    samples.append(files.read(index))
                    windows.add(float(window))
            except MediaError as error:
                raise UserError(error.detail) from None
    if len(windows) != 1:
        problem = "no long sample is there" if not windows else f"its windows have {sorted(windows)} s"
        raise UserError(f"{folder}: {problem}; must be a folder that mmldm sample --seconds filled")
    return samples, windows.pop()


def _draw(file: Path, name: str, curves: Sequence[Curve], window: float) -> None:
    """Write the ``curves`` of the sample ``name`` as a picture, its joints as red lines, to ``file``."""
    picture = Image.new("RGB", (WIDTH, len(curves) * (HEIGHT + 2 * MARGIN)), "white")
    draw = ImageDraw.Draw(picture)
    for row, curve in enumerate(curves):
        top = row * (HEIGHT + 2 * MARGIN) + MARGIN
        seconds = (len(curve.values) + 1) * curve.step
        across = (np.arange(len(curve.values)) + 1) * curve.step / seconds * WIDTH
        down = top + HEIGHT * (1 - curve.values / max(curve.values.max(), 1e-12))
        for joint in np.arange(window, seconds - curve.step / 2, window) / seconds * WIDTH:
            draw.line([(joint, top), (joint, top + HEIGHT)], "red")
        draw.line([*zip(across.tolist(), down.tolist(), strict=True)], "navy")
        draw.text((4, top - MARGIN + 4), f"{name}: {curve.measure}, at most {curve.values.max():.3g}", "black")
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    write_whole(file, stream.getvalue())
