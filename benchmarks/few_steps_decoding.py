"""Benchmark of distilled signal decoders: error of decoded clips at few steps, beside the teacher's at many.

    python -m benchmarks.few_steps_decoding --teacher AUTOENCODER --student DISTILLED --clips HELD_OUT_SET \
        --output benchmarks/results/few_steps_decoding_MACHINE.json --plot docs/few_steps_decoding.svg

Clips spread evenly over a set that no training saw are encoded once and decoded from the same noise by each decoder in
each number of steps. "psnr" (frames) and "mel_l1" (the audio image's, in dB, before any vocoder) hold the result
against the clip; "teacher_psnr" and "teacher_mel_l1" against the teacher's result in its most steps. "sharpness" is the
mean absolute difference of neighbouring pixels as a share of the clip's own: pictures that are only averages of what is
possible have a higher PSNR, and a lower sharpness. LPIPS is measured where its weights are given.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.curves import write
from benchmarks.report import machine, publish
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DecodingConfig, Reconstructing
from mmldm_scale.evaluation.metrics.mel_l1 import mean_absolute_error
from mmldm_scale.evaluation.metrics.psnr import psnr
from mmldm_scale.evaluation.reconstructor import Reconstructor
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.lpips import load_lpips
from mmldm_scale.shards.clips import decode_clip
from mmldm_scale.shards.reader import ShardSet

TEACHER_STEPS = (50, 10, 4, 2, 1)  # the first are the reference
Curve = dict[int, dict[str, float]]  # by number of steps


def main() -> int:
    """Measure, print, plot and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="a trained autoencoder")
    parser.add_argument("--student", required=True, action="append", metavar="NAME=DIR", help="distilled from it")
    parser.add_argument("--clips", required=True, type=Path, help="a finished set of clips that no training saw")
    parser.add_argument("--num-samples", type=int, default=8, help="clips to decode")
    parser.add_argument("--lpips", help="weights of LPIPS's backbone")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--plot", type=Path, help="picture of the curves")
    args = parser.parse_args()
    torch.set_num_threads(1)
    decoders = {"teacher": Autoencoder.from_pretrained(args.teacher)}
    decoders |= {name: Autoencoder.from_pretrained(path) for name, _, path in (s.partition("=") for s in args.student)}
    curves = measure(decoders, ShardSet(args.clips, "clips"), args.num_samples, args.lpips)
    trained = {
        name: dict(model.distillation.description())
        for name, model in decoders.items()
        if model.distillation is not None
    }
    publish(
        {
            "machine": machine("torch", "diffusers"),
            "clips": args.num_samples,
            "lpips": args.lpips or "not measured: no weights",
            "distilled": trained,
            "curves": curves,
        },
        args.output,
    )
    if args.plot:
        write(args.plot, panels(curves))
    return 0


def measure(
    decoders: Mapping[str, Autoencoder], shards: ShardSet, count: int, lpips: str | None = None
) -> dict[str, Curve]:
    """Return for each decoder and number of steps the means over ``count`` clips; decoders["teacher"] is the reference.

    Raises:
        UserError: an autoencoder does not have both modalities.
    """
    teacher = Reconstructor(decoders["teacher"], Reconstructing(), torch.device("cpu"))
    distance = load_lpips(lpips) if lpips else None
    rows: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    for i in tqdm(range(count), "clips", leave=False):
        index = i * len(shards) // count
        original = teacher.originals([decode_clip(shards[index].members)])
        given = *teacher.latents(original), *teacher.noise([index])
        truth = original.present["frames"], teacher.audio_image.to_decibels(original.present["audio_image"])
        reference: tuple[Tensor, Tensor] | None = None
        for name, model in decoders.items():
            for steps in model.distillation.steps if model.distillation else TEACHER_STEPS:
                frames, image = model.decode(*given, DecodingConfig(steps=steps))
                if frames is None or image is None:
                    raise UserError("--teacher: must be an autoencoder of both modalities")
                made = frames, teacher.audio_image.to_decibels(image)
                reference = reference or made
                row = {
                    "psnr": float(psnr(made[0], truth[0])),
                    "mel_l1": float(mean_absolute_error(made[1], truth[1])),
                    "teacher_psnr": min(float(psnr(made[0], reference[0])), 99.0),
                    "teacher_mel_l1": float(mean_absolute_error(made[1], reference[1])),
                    "sharpness": sharpness(made[0]) / sharpness(truth[0]),
                }
                if distance is not None:
                    row["lpips"] = float(distance(made[0].flatten(0, 1), truth[0].flatten(0, 1)).mean())
                rows[name, steps].append(row)
    curves: dict[str, Curve] = defaultdict(dict)
    for (name, steps), found in rows.items():
        curves[name][steps] = {key: round(sum(row[key] for row in found) / count, 3) for key in found[0]}
    return dict(curves)


def sharpness(pictures: Tensor) -> float:
    """Return the mean absolute difference of neighbouring pixels of ``pictures`` (…, H, W)."""
    differences = [pictures.diff(dim=axis).abs().mean() for axis in (-2, -1)]
    return float(sum(differences)) / 2


def panels(curves: Mapping[str, Curve]) -> dict[str, tuple[dict[str, dict[int, float]], float]]:
    """Return the panels of the plot: each quantity's curves, and the teacher's value in most steps."""
    titles = {"psnr": "PSNR of frames, dB", "mel_l1": "mel distance, dB", "sharpness": "sharpness, share of clips'"}
    return {
        title: (
            {name: {steps: row[key] for steps, row in curve.items()} for name, curve in curves.items()},
            curves["teacher"][TEACHER_STEPS[0]][key],
        )
        for key, title in titles.items()
    }


if __name__ == "__main__":
    sys.exit(main())
