"""Benchmark of the DiT's samplers: how close few steps come to many, and what the synthetic benchmark says of them.

    python -m benchmarks.sampling_steps --checkpoint runs/demo_corpus/dit --work runs/steps \
        --output benchmarks/results/sampling_steps_MACHINE.json

Every sampler that fits the DiT draws the same samples of svg from the same noise in every number of steps. "distance"
holds the latents against those of the first-order sampler in many steps: ‖z − z_many‖ / ‖z_many‖, mean over the
samples, by modality. Unrelated latents have a distance of about 1.4. Some of the latents are decoded, all from the same
noise, and measured as ``mmldm evaluate --protocol synthetic`` does; this is for DiTs of the demo's corpus.

Latents and numbers are kept in --work, a file each: the same command makes only what is missing there.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.report import machine, publish
from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.device import choose_device
from mmldm_scale.config import DecodingConfig, Sampling
from mmldm_scale.diffusion.guided_sampling import Latents
from mmldm_scale.diffusion.noise_process import noise_process
from mmldm_scale.diffusion.samplers import SAMPLERS, get_sampler
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.synthetic.benchmark import benchmark_row
from mmldm_scale.models import pretrained
from mmldm_scale.sampling.description import DiTDescription
from mmldm_scale.sampling.pipeline import Pipeline

STEPS = (5, 10, 25, 50)
MANY = 250  # steps of the reference
DECODED = (10,)  # numbers of steps whose samples are decoded, besides the reference's
DECODING = DecodingConfig("dpm++", 5)
TOGETHER = 8  # samples of a batch
Setting = tuple[str, int]  # sampler, steps

WIDTH, HEIGHT, MARGIN, LEGEND = 560, 340, 60, 90  # pixels of the plot
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # of the samplers; distinct to the colour-blind (Okabe & Ito)


def main() -> int:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="a trained DiT")
    parser.add_argument("--autoencoder", type=Path, help="its autoencoder, if that was moved")
    parser.add_argument("--work", required=True, type=Path, help="folder for latents and numbers of each setting")
    parser.add_argument("--num-samples", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="JSON file for the results; the plot stands beside it, as .svg")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = choose_device(args.device)
    settings = Sampling(decoding=DECODING)
    pipeline = Pipeline.from_pretrained(args.checkpoint, settings, args.autoencoder, device)
    results = {
        "machine": machine("torch", "diffusers", device=device),
        **measure(pipeline, args.work, args.num_samples),
    }
    publish(results, args.output)
    if args.output:
        write_whole(args.output.with_suffix(".svg"), plot(results["by_sampler"]).encode())
    return 0


def fitting(description: DiTDescription) -> tuple[list[Setting], Setting]:
    """Return the settings that are measured, and the reference: many steps of the DiT's sampler of first order."""
    process = noise_process(description.diffusion)
    names = [name for name, sampler in SAMPLERS.items() if isinstance(process, sampler.process)]
    return [(name, steps) for name in names for steps in STEPS], (get_sampler("auto", process, MANY).name, MANY)


def measure(pipeline: Pipeline, work: Path, count: int) -> dict[str, Any]:
    """Return distances and synthetic numbers of ``count`` samples by setting; complete what is missing in ``work``."""
    settings, reference = fitting(pipeline.description)
    work = work / pretrained.fingerprint(pipeline.description.folder)[:12]  # latents of another DiT are others
    work.mkdir(parents=True, exist_ok=True)
    made = {setting: _latents(pipeline, work, setting, count) for setting in (reference, *settings)}
    rows: dict[str, dict[str, Any]] = {}
    for setting, latents in made.items():
        row = rows[_title(setting)] = {"distance": distances(latents, made[reference])}
        if setting == reference or setting[1] in DECODED:
            row["synthetic"] = _synthetic(pipeline, work, setting, latents)
    return {
        "samples": count,
        "prediction": pipeline.description.diffusion.prediction,
        "reference": _title(reference),
        "decoding": f"{DECODING.sampler} {DECODING.steps}",
        "by_sampler": rows,
    }


def distances(latents: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, float]:
    """Return ‖z − z'‖ / ‖z'‖ of each modality, mean over the samples, (B, C, H, W) each."""
    found = {}
    for name, wanted in reference.items():
        difference = (latents[name] - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
        found[name] = round(float(difference.mean()), 5)
    return found


def _latents(pipeline: Pipeline, work: Path, setting: Setting, count: int) -> dict[str, Tensor]:
    """Return the latents of ``count`` samples, by modality."""
    file = work / f"{_stem(setting, count)}.safetensors"
    if not file.exists():
        sampler, steps = setting
        pipeline.settings = replace(pipeline.settings, sampler=sampler, steps=steps)
        parts = [pipeline.latents("svg", block).present for block in _blocks(count)]
        joined: dict[str, Tensor] = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
        _whole(file, lambda path: save_file(joined, path))
        print(f"{_title(setting)}: latents of {count} samples", file=sys.stderr, flush=True)
    return load_file(file)


def _synthetic(pipeline: Pipeline, work: Path, setting: Setting, latents: Mapping[str, Tensor]) -> dict[str, object]:
    """Return the synthetic benchmark's numbers of the decoded ``latents``; null where no clip has one."""
    count = len(next(iter(latents.values())))
    file = work / f"{_stem(setting, count)}.json"
    if not file.exists():
        media, records = pipeline.media, []
        for block in _blocks(count):
            part = Latents(**{name: z[block.start : block.stop].to(pipeline.device) for name, z in latents.items()})
            clips = pipeline.decode("svg", block, part)
            records += [ClipRecord(str(i), clip, media.fps, media.audio.sample_rate) for i, clip in enumerate(clips)]
            print(f"{_title(setting)}: {len(records)} of {count} decoded", file=sys.stderr, flush=True)
        values = benchmark_row(_title(setting), records).values
        numbers = {name: None if math.isnan(value) else round(value, 3) for name, value in values.items()}
        write_whole(file, json.dumps(numbers).encode())
    return dict(json.loads(file.read_bytes()))


def _whole(file: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` write ``file`` beside it, then rename, so that what exists is whole."""
    beside = file.with_suffix(".tmp")
    write(beside)
    beside.replace(file)


def _blocks(count: int) -> list[range]:
    return [range(start, min(start + TOGETHER, count)) for start in range(0, count, TOGETHER)]


def _title(setting: Setting) -> str:
    return f"{setting[0]} {setting[1]}"


def _stem(setting: Setting, count: int) -> str:
    return f"{setting[0]}_{setting[1]}_{count}"


def plot(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return ``rows`` as SVG: mean distance of the modalities against steps, both logarithmic, a line by sampler."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for title, row in rows.items():
        sampler, number = title.rsplit(" ", 1)
        mean = sum(row["distance"].values()) / len(row["distance"])
        if mean > 0:  # not the reference itself
            lines.setdefault(sampler, []).append((int(number), mean))
    steps = sorted({x for line in lines.values() for x, _ in line})
    values = [y for line in lines.values() for _, y in line]
    decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    across = _axis(steps[0], steps[-1], MARGIN, WIDTH - LEGEND)
    down = _axis(10.0 ** decades[0], 10.0 ** decades[-1], HEIGHT - MARGIN, 20)
    parts = [_text(across(x), HEIGHT - MARGIN + 18, str(x), "middle") for x in steps]
    for exponent in decades:
        y = down(10.0**exponent)
        parts.append(f'<path stroke="#ccc" d="M{MARGIN} {y:.1f}H{WIDTH - LEGEND}"/>')
        parts.append(_text(MARGIN - 6, y + 4, f"{10.0**exponent:g}", "end"))
    for colour, (sampler, line) in zip(COLOURS, lines.items(), strict=False):
        points = [(across(x), down(y)) for x, y in sorted(line)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(f'<path fill="none" stroke="{colour}" stroke-width="2" d="M{path}"/>')
        parts += [f'<circle fill="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in points]
        parts.append(_text(points[-1][0] + 8, points[-1][1] + 4, sampler, "start", colour))
    parts.append(_text((MARGIN + WIDTH - LEGEND) / 2, HEIGHT - 18, "steps", "middle"))
    parts.append(_text(8, 12, "distance to the latents of many steps", "start"))
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(parts)}</svg>\n'


def _axis(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return the logarithmic map from values to pixels that leads ``low`` to ``start`` and ``high`` to ``end``."""
    return lambda value: start + (end - start) * math.log(value / low) / math.log(high / low)


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#333") -> str:
    return f'<text fill="{colour}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    sys.exit(main())
