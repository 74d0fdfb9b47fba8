"""``mmldm ablation``: trains variants of the autoencoder one after the other on one data set and compares them.

The variants are listed in a YAML file (``configs/ablation/table5.yaml``: the steps of the paper's Table 5). Each is a
run of its own, ``OUTPUT/NAME/``: ``mmldm train autoencoder`` with the data set's configuration and the variant's
settings, then ``mmldm reconstruct`` of its newest checkpoint. Both run as sub-processes, as a user would start them, so
a stopped ablation resumes where it was and finished variants are not repeated. The table is printed and written to
``OUTPUT/ablation.md``; ``OUTPUT/ablation.json`` holds the same values.
"""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from omegaconf import MISSING

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.processes import die_with_parent, own_command
from mmldm_scale.config import Reconstructing, arguments, load, require
from mmldm_scale.evaluation.arguments import FINETUNE_FILE
from mmldm_scale.evaluation.reconstruction import RECONSTRUCTED, RESULTS
from mmldm_scale.models import pretrained
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.inputs import check_inputs, check_set
from mmldm_scale.trainables.registry import registered

FINETUNED_RUN = "kl_vae"  # folder of the fine-tuned KL-VAE's run, in the output folder
TABLE, TABLE_DATA = "ablation.md", "ablation.json"


@dataclass
class Variant:
    """One variant of the autoencoder."""

    name: str = MISSING  # of its run folder
    title: str = MISSING  # in the table
    set: list[str] = field(default_factory=list)  # overrides of the data set's configuration
    finetuned: bool = False  # use the KL-VAE that was fine-tuned on the data set


@dataclass
class Ablation:
    """The variants, in order."""

    variants: list[Variant] = MISSING

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        require(len(names) > 0, "variants", "at least one is needed")
        require(len(set(names)) == len(names), "variants", "two have the same name")
        valid = all(name and Path(name).name == name and name != FINETUNED_RUN for name in names)
        require(valid, "variants", f"each name must be valid as a folder's name, and not {FINETUNED_RUN!r}")


class CommandFailed(Exception):
    """A command ended with ``status``, which is not 0."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


def run(args: argparse.Namespace) -> int:
    """Run the ablation that ``args`` (of :mod:`mmldm_scale.evaluation.arguments`) describe; return the exit status.

    Raises:
        UserError: the file of variants or the configuration of one of them is not valid, or its inputs are missing.
    """
    variants = load(Ablation, [args.variants]).variants
    files = arguments.files(args, "autoencoder")
    # All before any training: a mistake in the last one would show only after days.
    schemas = [load(AutoencoderTraining, files, _overrides(args, variant)) for variant in variants]
    for variant, schema in zip(variants, schemas, strict=True):
        _check_earlier_results(args, variant)
        if not variant.finetuned:  # else its KL-VAE is trained first
            check_inputs(registered("autoencoder"), schema)
    check_set(str(args.input), "clips")
    if args.check:
        print(f"{args.output}: {len(variants)} variants can be trained, and measured on {args.input}")
        return 0
    rows = []
    for number, variant in enumerate(variants, start=1):
        print(f"variant {number} of {len(variants)}: {variant.name} ({variant.title})", file=sys.stderr, flush=True)
        try:
            rows.append((variant, _train_and_measure(args, variant)))
        except CommandFailed as failure:
            message = f"variant {variant.name} ended with {failure} (see above); run the same command again to resume"
            print(f"mmldm ablation: {message}", file=sys.stderr, flush=True)
            return failure.status
        _write_table(args.output, rows)
    print(table(rows), end="")
    return 0


def table(rows: Sequence[tuple[Variant, dict[str, float]]]) -> str:
    """Return a Markdown table: a row for each variant, a column for each metric, empty where it is missing."""
    metrics = list(dict.fromkeys(metric for _, values in rows for metric in values))
    lines = [f"| | {' | '.join(metrics)} |", f"|---|{'---:|' * len(metrics)}"]
    for variant, values in rows:
        cells = [f"{values[metric]:.3f}" if metric in values else "" for metric in metrics]
        lines.append(f"| {variant.title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _write_table(output: Path, rows: Sequence[tuple[Variant, dict[str, float]]]) -> None:
    write_whole(output / TABLE, table(rows).encode())
    data = [{"name": variant.name, "title": variant.title, "metrics": metrics} for variant, metrics in rows]
    write_whole(output / TABLE_DATA, json.dumps(data, indent=1).encode() + b"\n")


def _train_and_measure(args: argparse.Namespace, variant: Variant) -> dict[str, float]:
    """Train and measure ``variant``, as far as that is not done yet; return its metrics."""
    if variant.finetuned:
        data = load(AutoencoderTraining, arguments.files(args, "autoencoder"), args.overrides)
        inputs = [f"shards={json.dumps(data.shards)}", f"weights={data.weights}", f"kl_vae={data.kl_vae}"]
        _train(args, "kl_vae", args.finetune or [FINETUNE_FILE], [*inputs, f"run={args.output / FINETUNED_RUN}"])
    _train(args, "autoencoder", arguments.files(args, "autoencoder"), _overrides(args, variant))
    weights = pretrained.find(args.output / variant.name, "autoencoder")
    results = args.output / variant.name / "reconstruction" / weights.parent.name  # step-…: of this checkpoint
    if not (results / RESULTS).exists():
        options = ["--checkpoint", weights, "--input", args.input, "--num-samples", args.num_samples]
        _call([*own_command(), "reconstruct", *options, "--output", results, *_config_options(args.reconstruct)])
    return json.loads((results / RESULTS).read_text())[RECONSTRUCTED]


def _check_earlier_results(args: argparse.Namespace, variant: Variant) -> None:
    """Raise UserError if ``variant`` has been measured with other clips or settings than those of ``args``."""
    files = sorted((args.output / variant.name / "reconstruction").glob(f"*/{RESULTS}"))
    if not files:
        return
    earlier = json.loads(files[-1].read_text())
    settings = json.loads(json.dumps(asdict(load(Reconstructing, args.reconstruct))))  # tuples become lists
    now = (args.num_samples, str(args.input.resolve()), settings)
    if (earlier["samples"], earlier["clips"]["path"], earlier["settings"]) != now:
        raise UserError(f"{files[-1]}: measured with other clips or settings than now; remove its folder")


def _overrides(args: argparse.Namespace, variant: Variant) -> list[str]:
    """Return the overrides of the training of ``variant``: the user's, then its own."""
    kl_vae = [f"kl_vae={args.output / FINETUNED_RUN}"] if variant.finetuned else []
    return [*args.overrides, *variant.set, *kl_vae, f"run={args.output / variant.name}"]


def _train(args: argparse.Namespace, model: str, files: Sequence[str | Path], overrides: Sequence[str]) -> None:
    """Train ``model`` to the end; return at once if its run is finished."""
    launch = ["--processes", args.processes] if args.processes else []
    launch += ["--under", args.under] if args.under else []
    _call([*own_command(), "train", model, *_config_options(files), *launch, *overrides])


def _config_options(files: Sequence[str | Path]) -> list[str | Path]:
    return [part for file in files for part in ("--config", file)]


def _call(command: Sequence[object]) -> None:
    """Run ``command`` to its end, with our standard output and error.

    Raises:
        CommandFailed: it ended with another status than 0.
    """
    words = [str(word) for word in command]
    done = subprocess.run(words, preexec_fn=lambda: die_with_parent(signal.SIGTERM))
    if done.returncode != 0:
        raise CommandFailed(done.returncode if done.returncode > 0 else 128 - done.returncode)
