"""Benchmark of the signal decoder: reconstruction error and time by sampler and number of steps.

    python -m benchmarks.decoding --checkpoint AUTOENCODER --clips SET --output benchmarks/results/decoding_MACHINE.json

Clips spread evenly over a set are encoded once and decoded with every sampler and number of steps, from the same noise.
PSNR (frames) and mel L1 (the audio image's, in dB, before any vocoder) hold the result against the original;
"limit_psnr" holds its frames against those of very many DDIM steps, which every sampler would reach: where this
is high, more steps change nothing. Time is what decoding takes, KL-VAE included: the process' own (without waiting)
on the CPU, the clock's on a GPU; samplers take turns, clip by clip.
"""

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from benchmarks.report import machine, publish
from mmldm_scale.common.device import choose_device
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DecodingConfig, Reconstructing
from mmldm_scale.evaluation.metrics.mel_l1 import mean_absolute_error
from mmldm_scale.evaluation.metrics.psnr import psnr
from mmldm_scale.evaluation.reconstructor import ClipSignals, Reconstructor
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.shards.clips import decode_clip
from mmldm_scale.shards.reader import ShardSet

SOLVER_STEPS = (3, 5, 8, 10, 15, 20, 50)
STEPS: dict[Literal["ddim", "dpm++", "unipc"], tuple[int, ...]] = {
    "ddim": (5, 10, 20, 25, 50),
    "dpm++": SOLVER_STEPS,
    "unipc": SOLVER_STEPS,
}
LIMIT = DecodingConfig("ddim", 250)
USUAL = "ddim 50"  # what the others' times are held against


def main() -> int:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a trained autoencoder")
    parser.add_argument("--clips", required=True, type=Path, help="a finished set of clips, cut as it needs them")
    parser.add_argument("--num-samples", type=int, default=8, help="clips to decode")
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = choose_device(args.device)
    model = Autoencoder.from_pretrained(args.checkpoint, DTYPES[args.precision], device)
    reconstructor = Reconstructor(model, Reconstructing(precision=args.precision), device)
    results = {
        "machine": machine("torch", "diffusers", device=device),
        **measure(reconstructor, ShardSet(args.clips, "clips"), args.num_samples),
    }
    publish(results, args.output)
    return 0


def measure(
    reconstructor: Reconstructor, shards: ShardSet, count: int, limit: DecodingConfig = LIMIT
) -> dict[str, object]:
    """Return for each sampler and number of steps the means over ``count`` clips, and the times as ratios."""
    settings = {f"{name} {n}": DecodingConfig(name, n) for name, steps in STEPS.items() for n in steps}
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    for i in tqdm(range(count), "clips", leave=False):
        index = i * len(shards) // count
        original = reconstructor.originals([decode_clip(shards[index].members)])
        given = *reconstructor.latents(original), *reconstructor.noise([index])
        converged, _ = both(reconstructor.model.decode(*given, limit))
        for name, decoding in settings.items():
            began = clock(reconstructor.device)
            made = both(reconstructor.model.decode(*given, decoding))
            seconds = clock(reconstructor.device) - began
            rows[name].append({**errors(reconstructor, *made, original, converged), "seconds": seconds})
    means = {name: {key: sum(row[key] for row in found) / count for key in found[0]} for name, found in rows.items()}
    for found in means.values():
        found["time"] = found["seconds"] / means[USUAL]["seconds"]
    shape = {"frames": reconstructor.model.media.frames, "size": reconstructor.model.media.size}
    return {
        "clips": {"samples": count, **shape},
        "limit": f"{limit.sampler} {limit.steps}",
        "time": f"decoding a clip, as a share of {USUAL}",
        "by_sampler": {name: {key: round(value, 4) for key, value in found.items()} for name, found in means.items()},
    }


def both(decoded: tuple[torch.Tensor | None, torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ``decoded`` frames and audio images; raise UserError if the autoencoder has one of them alone."""
    frames, image = decoded
    if frames is None or image is None:
        raise UserError("--checkpoint: must be an autoencoder of both modalities")
    return frames, image


def errors(
    reconstructor: Reconstructor,
    frames: torch.Tensor,
    image: torch.Tensor,
    original: ClipSignals,
    converged: torch.Tensor,
) -> dict[str, float]:
    """Return how far one clip's decoded ``frames`` and audio ``image`` are off."""
    mels = [reconstructor.audio_image.to_decibels(picture) for picture in (image, original.present["audio_image"])]
    return {
        "psnr": float(psnr(frames, original.present["frames"])),
        "mel_l1": float(mean_absolute_error(*mels)),
        "limit_psnr": float(psnr(frames, converged)),
    }


def clock(device: torch.device) -> float:
    """Return seconds: of the clock once the GPU is done, or of this process' own work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


if __name__ == "__main__":
    sys.exit(main())
