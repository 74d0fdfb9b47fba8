"""``mmldm ablation``: trains variants of the autoencoder one after the other on one data set and compares them.

The variants are listed in a YAML file (``configs/ablation/table5.yaml``: the steps of the paper's Table 5). Each is a
run of its own, ``OUTPUT/NAME/``: ``mmldm train autoencoder`` with the data set's configuration and the variant's
settings, then ``mmldm reconstruct`` of its newest checkpoint. Both run as sub-processes, as a user would start them, so
a stopped ablation resumes where it was and finished variants are not repeated. Where the networks of the protocol have
weights, ``mmldm evaluate`` then measures the reconstructions as a set against their originals: rFVD, rKVD, rFAD. The
table is printed and written to ``OUTPUT/ablation.md``; ``OUTPUT/ablation.json`` holds the same values.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from omegaconf import MISSING

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.processes import own_command
from mmldm_scale.config import Reconstructing, arguments, load, require
from mmldm_scale.config.evaluating import Evaluating
from mmldm_scale.evaluation.arguments import ABLATION_PROTOCOL, FINETUNE_FILE
from mmldm_scale.evaluation.commands import CommandFailed, call
from mmldm_scale.evaluation.measures import Measures, Report, check_count, find_measures
from mmldm_scale.evaluation.reconstruction import LOSSLESS, RECONSTRUCTED, RESULTS
from mmldm_scale.evaluation.reconstruction_figures import cells, facts, measure_reconstructions
from mmldm_scale.models import pretrained
from mmldm_scale.shards.manifest import MANIFEST
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.inputs import check_inputs, check_set
from mmldm_scale.trainables.registry import registered

FINETUNED_RUN = "kl_vae"  # folder of the fine-tuned KL-VAE's run, in the output folder
RECONSTRUCTION = "reconstruction"  # folder of a variant's reconstructions, in its run folder
ORIGINALS = "originals"  # folder of the originals' features, in the output folder
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
        others = (FINETUNED_RUN, ORIGINALS)
        valid = all(name and Path(name).name == name and name not in others for name in names)
        text = f"each name must be valid as a folder's name, and not {FINETUNED_RUN!r} or {ORIGINALS!r}"
        require(valid, "variants", text)


@dataclass(frozen=True)
class Result:
    """A variant that was trained and measured.

    Attributes:
        metrics: of the pairs of reconstruction and original, by name.
        reports: on the figures of the set of reconstructions, by protocol.
    """

    variant: Variant
    metrics: dict[str, float]
    reports: dict[str, Report]


def run(args: argparse.Namespace) -> int:
    """Run the ablation that ``args`` (of :mod:`mmldm_scale.evaluation.arguments`) describe; return the exit status.

    Raises:
        UserError: the file of variants or the configuration of one of them is not valid, its inputs are missing, or
            reconstructions cannot be measured under the protocol.
    """
    variants = load(Ablation, [args.variants]).variants
    measures = _check(args, variants)
    if args.check:
        print(f"{args.output}: {len(variants)} variants can be trained, and measured on {args.input}")
        return 0
    results: list[Result] = []
    for number, variant in enumerate(variants, start=1):
        print(f"variant {number} of {len(variants)}: {variant.name} ({variant.title})", file=sys.stderr, flush=True)
        try:
            results.append(_train_and_measure(args, variant, measures))
        except CommandFailed as failure:
            message = f"variant {variant.name} ended with {failure} (see above); run the same command again to resume"
            print(f"mmldm ablation: {message}", file=sys.stderr, flush=True)
            return failure.status
        _write_table(args.output, results)
    print(table(results), end="")
    return 0


def _check(args: argparse.Namespace, variants: Sequence[Variant]) -> list[Measures]:
    """Check everything before any training: a mistake in the last variant would show only after days.

    Returns what figures of reconstructions can be measured.
    """
    files, names = arguments.files(args, "autoencoder"), args.protocol or [ABLATION_PROTOCOL]
    found = find_measures(names, load(Evaluating, args.evaluate))
    measures = [each for each in found if each.metrics]
    if measures:
        check_count(args.num_samples)
    schemas = [load(AutoencoderTraining, files, _overrides(args, variant)) for variant in variants]
    for variant, schema in zip(variants, schemas, strict=True):
        _check_earlier_results(args, variant, kept=bool(measures))
        if not variant.finetuned:  # else its KL-VAE is trained first
            check_inputs(registered("autoencoder"), schema)
    check_set(str(args.input), "clips")
    for each in found:
        each.announce("r")
    return measures


def table(results: Sequence[Result]) -> str:
    """Return a table in Markdown: a row for each variant, a column for each metric and figure, empty where missing."""
    rows = [
        {**{name: f"{value:.3f}" for name, value in result.metrics.items()}, **cells(result.reports)}
        for result in results
    ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for result, row in zip(results, rows, strict=True):
        lines.append(f"| {result.variant.title} | {' | '.join(row.get(column, '') for column in columns)} |")
    below = facts(results[0].reports) if results else []
    return "\n".join([*lines, *([""] if below else []), *(f"- {line}" for line in below)]) + "\n"


def _write_table(output: Path, results: Sequence[Result]) -> None:
    write_whole(output / TABLE, table(results).encode())
    data = [
        {
            "name": result.variant.name,
            "title": result.variant.title,
            "metrics": result.metrics,
            "reports": {
                label: {key: value for key, value in report.items() if key != "by_clip"}
                for label, report in result.reports.items()
            },
        }
        for result in results
    ]
    write_whole(output / TABLE_DATA, json.dumps(data, indent=1).encode() + b"\n")


def _train_and_measure(args: argparse.Namespace, variant: Variant, measures: Sequence[Measures]) -> Result:
    """Train and measure ``variant``, as far as that is not done yet."""
    if variant.finetuned:
        data = load(AutoencoderTraining, arguments.files(args, "autoencoder"), args.overrides)
        inputs = [f"shards={json.dumps(data.shards)}", f"weights={data.weights}", f"kl_vae={data.kl_vae}"]
        _train(args, "kl_vae", args.finetune or [FINETUNE_FILE], [*inputs, f"run={args.output / FINETUNED_RUN}"])
    _train(args, "autoencoder", arguments.files(args, "autoencoder"), _overrides(args, variant))
    weights = pretrained.find(args.output / variant.name, "autoencoder")
    folder = args.output / variant.name / RECONSTRUCTION / weights.parent.name  # step-…: of this checkpoint
    if not (folder / RESULTS).exists():
        options = ["--checkpoint", weights, "--input", args.input, "--num-samples", args.num_samples]
        options += ["--lossless"] if measures else []
        call([*own_command(), "reconstruct", *options, "--output", folder, *_config_options(args.reconstruct)])
    metrics = json.loads((folder / RESULTS).read_text())[RECONSTRUCTED]
    options = [f"reference_features={args.output / ORIGINALS}"]
    options += ["--processes", args.processes] if args.processes else []
    reports = {
        each.label: measure_reconstructions(each, folder, args.input, args.num_samples, args.evaluate, options)
        for each in measures
    }
    return Result(variant, metrics, reports)


def _check_earlier_results(args: argparse.Namespace, variant: Variant, kept: bool) -> None:
    """Raise UserError if ``variant`` has been measured with other clips or settings than those of ``args``.

    Args:
        kept: the reconstructions have to be kept without loss.
    """
    files = sorted((args.output / variant.name / RECONSTRUCTION).glob(f"*/{RESULTS}"))
    if not files:
        return
    earlier = json.loads(files[-1].read_text())
    settings = json.loads(json.dumps(asdict(load(Reconstructing, args.reconstruct))))  # tuples become lists
    now = (args.num_samples, str(args.input.resolve()), settings)
    if (earlier["samples"], earlier["clips"]["path"], earlier["settings"]) != now:
        raise UserError(f"{files[-1]}: measured with other clips or settings than now; remove its folder")
    if kept and not (files[-1].parent / LOSSLESS / MANIFEST).exists():
        raise UserError(f"{files[-1]}: its reconstructions were not kept, which --protocol needs; remove its folder")


def _overrides(args: argparse.Namespace, variant: Variant) -> list[str]:
    """Return the overrides of the training of ``variant``: the user's, then its own."""
    kl_vae = [f"kl_vae={args.output / FINETUNED_RUN}"] if variant.finetuned else []
    return [*args.overrides, *variant.set, *kl_vae, f"run={args.output / variant.name}"]


def _train(args: argparse.Namespace, model: str, files: Sequence[str | Path], overrides: Sequence[str]) -> None:
    """Train ``model`` to the end; return at once if its run is finished."""
    launch = ["--processes", args.processes] if args.processes else []
    launch += ["--under", args.under] if args.under else []
    call([*own_command(), "train", model, *_config_options(files), *launch, *overrides])


def _config_options(files: Sequence[str | Path]) -> list[str | Path]:
    return [part for file in files for part in ("--config", file)]
