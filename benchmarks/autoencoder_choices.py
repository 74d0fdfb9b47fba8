"""Comparison of choices in the autoencoder's training, on small autoencoders, and of scales of decoding guidance.

    python -m benchmarks.autoencoder_choices --shards CLIPS --held-out OTHER_CLIPS --kl-vae RUN --runs runs/choices \
        --samples 40000 --output benchmarks/results/autoencoder_choices_MACHINE.json

Each variant trains configs/autoencoder/demo.yaml on clips of 64 × 64 pixels, with the same seed and data order, and
differs from the first, "base", in one setting. The discriminator learns from a third of the run on. Clips that are not
trained on are reconstructed with the averaged weights at the end: PSNR of the frames, and mel L1 of the audio image
("image_mel_l1", in dB) and of the vocoder's sound ("mel_l1"). "ceiling" is what KL-VAE and vocoder alone reach.

Over the run, means of consecutive logged steps are recorded: losses on the held-out clips, and the discriminator's
logits and accuracy, which stay near -1.4 and 0.5 as long as it is even with the decoder. At last the base reconstructs
the same clips, from the same noise, with each scale of guidance.

The same command resumes: each variant is a run of ``mmldm ablation`` in --runs, and no measurement is repeated.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import machine, publish
from mmldm_scale import cli
from mmldm_scale.config import load, presets
from mmldm_scale.evaluation.reconstruction import CEILING, RECONSTRUCTED, RESULTS
from mmldm_scale.models import pretrained
from mmldm_scale.runs import run_log
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining

BASE = "base"
VARIANTS = {
    BASE: [],
    "projectors_attached": ["model.detach_projectors=false"],
    "features_on_skips": ["model.decoder.features=skips"],
    "no_discriminator": ["adversarial.weight=0"],
}
GUIDANCE = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0)  # scales, of both modalities
PRESET = presets.path("autoencoder/demo")
DECODING = {"sampler": "dpm++", "steps": 10}
VALIDATION_SAMPLES = 64
VALIDATIONS = 8  # in a run
POINTS = 20  # of a curve over the run
DISCRIMINATOR = ("discriminator/logit_real", "discriminator/logit_fake", "discriminator/accuracy")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure, print and write the results; return the exit status."""
    args = _parser().parse_args(arguments)
    args.runs.mkdir(parents=True, exist_ok=True)
    chosen = {name: VARIANTS[name] for name in args.variants}
    overrides = settings(args)
    status = _train(args, chosen, overrides) or (BASE in chosen and _guide(args))
    if status:
        return status
    measured = {name: _reconstruction(args.runs / name) for name in chosen}
    results = {
        "machine": machine("torch", "diffusers"),
        "settings": {"configuration": str(PRESET), "overrides": overrides, "decoding": DECODING},
        "samples": args.samples,
        "measured_clips": args.num_samples,
        "ceiling": next(iter(measured.values()))[CEILING],
        "variants": {
            name: {"settings": chosen[name], "metrics": values[RECONSTRUCTED], **over_the_run(args.runs / name)}
            for name, values in measured.items()
        },
        "guidance": _guided(args) if BASE in chosen else {},
    }
    publish(results, args.output)
    return 0


def settings(args: argparse.Namespace) -> list[str]:
    """Return the overrides of the configuration that all variants have; raise UserError if they are not valid."""
    overrides = [
        f"shards={args.shards}",
        f"validation={args.held_out}",
        f"kl_vae={args.kl_vae}",
        f"adversarial.after={args.samples // 3}",
        f"adversarial.ramp={args.samples // 10}",
        f"training.total_samples={args.samples}",
        f"training.validation_samples={VALIDATION_SAMPLES}",
        "model.detach_projectors=true",  # as in the other presets
    ]
    if args.no_estimate:
        overrides.append("model.decoder.estimate=false")
    batch = load(AutoencoderTraining, [PRESET], overrides[:3]).training.global_batch
    parts = {"log_every": 2 * POINTS, "validate_every": VALIDATIONS, "checkpoint_every": 10, "preview_every": 1}
    overrides += [f"training.{key}={max(1, args.samples // count // batch) * batch}" for key, count in parts.items()]
    load(AutoencoderTraining, [PRESET], overrides)
    return overrides


def over_the_run(run: Path) -> dict[str, list[dict[str, float]]]:
    """Return curves of the values on held-out clips, and of the discriminator's."""
    records = list(run_log.read(run))
    held_out = {tag for record in records for tag in record if tag.startswith(("validation/loss/", "validation/term/"))}
    return {"held_out": curve(records, sorted(held_out)), "discriminator": curve(records, DISCRIMINATOR)}


def curve(records: Sequence[Mapping[str, Any]], tags: Sequence[str], points: int = POINTS) -> list[dict[str, float]]:
    """Return the means of ``tags`` over at most ``points`` groups of consecutive records that have any of them.

    A group's "samples_seen" is its last record's.
    """
    with_tags = [record for record in records if any(tag in record for tag in tags)]
    edges = [number * len(with_tags) // points for number in range(points + 1)]
    groups = [with_tags[first:end] for first, end in pairwise(edges) if end > first]
    return [{"samples_seen": group[-1]["samples_seen"], **_means(group, tags)} for group in groups]


def _means(records: Sequence[Mapping[str, Any]], tags: Sequence[str]) -> dict[str, float]:
    values = {tag: [record[tag] for record in records if tag in record] for tag in tags}
    return {tag: round(sum(numbers) / len(numbers), 5) for tag, numbers in values.items() if numbers}


def _train(args: argparse.Namespace, chosen: Mapping[str, list[str]], overrides: Sequence[str]) -> int:
    """Train and measure the ``chosen`` variants, as far as that is not done; return the exit status."""
    variants = [{"name": name, "title": name, "set": changes} for name, changes in chosen.items()]
    files = {"variants": {"variants": variants}, "reconstruct": {"decoding": DECODING}}
    for name, content in files.items():
        (args.runs / f"{name}.yaml").write_text(yaml.safe_dump(content))
    options = [part for name in files for part in (f"--{name}", str(args.runs / f"{name}.yaml"))]
    options += ["--config", str(PRESET), "--input", str(args.held_out), "--num-samples", str(args.num_samples)]
    processes = ["--processes", str(args.processes)] if args.processes else []
    return cli.main(["ablation", *options, *processes, "--output", str(args.runs), *overrides])


def _guide(args: argparse.Namespace) -> int:
    """Measure the base with each scale of guidance, as far as that is not done; return the exit status."""
    for scale, folder in _guided_folders(args).items():
        if (folder / RESULTS).exists():
            continue
        paths = ["--checkpoint", str(args.runs / BASE), "--input", str(args.held_out), "--output", str(folder)]
        decoding = {**DECODING, "audio_guidance": scale, "video_guidance": scale}
        overrides = [f"decoding.{key}={value}" for key, value in decoding.items()]
        status = cli.main(["reconstruct", *paths, "--num-samples", str(args.num_samples), *overrides])
        if status:
            return status
    return 0


def _guided(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the base's metrics by scale of guidance."""
    return {
        f"{scale:g}": json.loads((folder / RESULTS).read_text())[RECONSTRUCTED]
        for scale, folder in _guided_folders(args).items()
    }


def _guided_folders(args: argparse.Namespace) -> dict[float, Path]:
    return {scale: args.runs / BASE / "guidance" / _step(args.runs / BASE) / f"{scale:g}" for scale in GUIDANCE}


def _reconstruction(run: Path) -> dict[str, Any]:
    """Return what ``mmldm ablation`` has measured of the newest checkpoint of ``run``."""
    results: dict[str, Any] = json.loads((run / "reconstruction" / _step(run) / RESULTS).read_text())
    return results


def _step(run: Path) -> str:
    """Return the name of the newest checkpoint of ``run``."""
    return pretrained.find(run, "autoencoder").parent.name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True, type=Path, help="a finished set of clips to train on")
    parser.add_argument("--held-out", required=True, type=Path, help="a finished set of other clips")
    parser.add_argument("--kl-vae", required=True, type=Path, help="a KL-VAE: a run, a folder or a file")
    parser.add_argument("--runs", required=True, type=Path, help="folder for the variants' run folders")
    parser.add_argument("--samples", type=int, default=40_000, help="length of each training")
    parser.add_argument("--num-samples", type=int, default=24, help="held-out clips to reconstruct")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--no-estimate", action="store_true", help="model.decoder.estimate=false in all variants")
    parser.add_argument("--processes", type=int, help="train in so many processes")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
