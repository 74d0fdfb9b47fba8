"""How the samples of a checkpoint are measured: ``mmldm sample --lossless``, then ``mmldm evaluate``.

Everything about a run's evaluation under the same settings lies in ``runs/NAME/evaluation/PROTOCOL-SETTINGS/``:
``tensorboard/`` with the curves, and for each checkpoint ``step-SAMPLES/`` with its report and, until it is measured,
its weights, samples and features.
"""

import argparse
import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import summary

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import Sampling, arguments, load
from mmldm_scale.config.evaluating import Evaluating
from mmldm_scale.evaluation import evaluate, figures, protocols
from mmldm_scale.evaluation.arguments import add_evaluate_arguments
from mmldm_scale.evaluation.clip_sets import open_clip_set
from mmldm_scale.evaluation.networks import build_networks, check_networks, network_key
from mmldm_scale.evaluation.protocols.protocol import SMALLEST, Protocol
from mmldm_scale.evaluation.report import report
from mmldm_scale.evaluation.run_evaluation.selection import WEIGHTS, identity
from mmldm_scale.runs import evaluations
from mmldm_scale.runs.event_file import EventFile
from mmldm_scale.sampling import job, lossless
from mmldm_scale.sampling.arguments import add_arguments as add_sample_arguments

FOLDER, SAMPLES, TENSORBOARD = "evaluation", "samples", "tensorboard"
PREFIX = "sampling."  # of overrides that are settings of mmldm sample
DIGITS = 8  # of the digest of the settings, in names of folders


class Failed(Exception):
    """Sampling or measuring ended with ``status``, which is not 0; a process of it has printed the reason."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


@dataclass(frozen=True)
class Measurement:
    """How the checkpoints of a run are measured; everything is checked.

    Attributes:
        args: of :mod:`mmldm_scale.evaluation.arguments`.
        count: number of samples.
        limited: whether that is less than the protocol needs.
        settings: digest of everything that figures depend on, besides the checkpoint.
        shares_features: whether the user names a folder for features of the reference.
    """

    args: argparse.Namespace
    protocol: Protocol
    count: int
    limited: bool
    settings: str
    shares_features: bool

    @property
    def label(self) -> str:
        """The name of the protocol."""
        return protocols.label(self.args.protocol)

    @property
    def folder(self) -> Path:
        """The folder of this run's evaluation under these settings."""
        run: Path = self.args.folder
        return run / FOLDER / f"{Path(self.label).stem}-{self.settings[:DIGITS]}"

    def measure(self, samples_seen: int, folder: Path) -> evaluations.Record:
        """Sample from the weights in ``folder`` and measure the samples; return the record of the checkpoint.

        What a killed call has made is used.

        Raises:
            UserError: weights, samples or reference cannot be used; a signal ended it.
            Failed: a process of it ended otherwise.
        """
        _run(job.run, add_sample_arguments, self._sample_words(folder))
        _run(evaluate.run, add_evaluate_arguments, self._evaluate_words(folder))
        content = report.read(folder)
        return {
            "samples_seen": samples_seen,
            "time": time.time(),
            "protocol": self.label,
            "not_protocol": content[report.REQUEST]["not_protocol"],
            "figures": {key: _figure(part) for key, part in content["figures"].items()},
            "samples": content[report.REQUEST]["samples"]["measured"],
            "reference": content[report.REQUEST]["reference"]["measured"],
            "task": self.args.task,
            "settings": self.settings,
            "weights": identity(folder / WEIGHTS),
        }

    def write_events(self, record: evaluations.Record) -> None:
        """Add the figures of ``record`` to the curves in TensorBoard."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with EventFile(self.folder / TENSORBOARD) as events:
            for key, part in record["figures"].items():
                for name, end in (("value", ""), ("low", "/low"), ("high", "/high"), ("floor", "/floor")):
                    if part[name] is not None:
                        tag = f"{self.label}/{key}{end}"
                        events.add(summary.scalar(tag, part[name]), record["samples_seen"])

    def clean(self, folder: Path) -> None:
        """Remove what is not needed in ``folder`` after its checkpoint was measured."""
        kept = (report.JSON, report.MARKDOWN, report.HTML, *([SAMPLES] if self.args.keep_samples else []))
        for path in folder.iterdir():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _sample_words(self, folder: Path) -> list[str]:
        args = self.args
        options = {
            "--checkpoint": folder / WEIGHTS,
            "--task": args.task,
            "--num-samples": self.count,
            "--output": folder / SAMPLES,
            "--input": args.input,
            "--autoencoder": args.autoencoder,
        }
        files = [f"--config={file}" for file in args.sampling]
        return [*self._words(options), "--lossless", *files, *_sampling_overrides(args)]

    def _evaluate_words(self, folder: Path) -> list[str]:
        args = self.args
        options = {
            "--samples": folder / SAMPLES / lossless.FOLDER / args.task,
            "--reference": args.reference,
            "--protocol": args.protocol,
            "--output": folder,
            "--num-samples": self.count if self.limited else None,
        }
        run: Path = args.folder
        shared = [] if self.shares_features else [f"reference_features={run / FOLDER / evaluate.FEATURES}"]
        return [*self._words(options), *arguments.words(_own(args)), *shared]

    def _words(self, options: dict[str, Any]) -> list[str]:
        common = {"--device": self.args.device, "--processes": self.args.processes, "--part": "1/1"}
        return [f"{name}={value}" for name, value in {**options, **common}.items() if value is not None]


def prepare(args: argparse.Namespace) -> Measurement:
    """Check how ``args`` (of :mod:`mmldm_scale.evaluation.arguments`) ask to measure; return it.

    Raises:
        UserError: the settings, the protocol, the weights of a network or the reference cannot be used.
    """
    settings = load(Evaluating, arguments.files(args, "evaluate"), _own(args).overrides)
    sampling = load(Sampling, args.sampling, _sampling_overrides(args))
    protocol, label = protocols.load(args.protocol), protocols.label(args.protocol)
    if protocol.reference.paired:
        raise UserError(f"--protocol {label}: compares each sample with a clip of its own; samples of a run have none")
    count = args.num_samples or protocol.samples.count
    if count < SMALLEST:
        raise UserError(f"--num-samples {count}: must be at least {SMALLEST}")
    check_networks(protocol, settings)
    reference = open_clip_set(str(args.reference))
    limited = count < protocol.samples.count
    needed = count if limited or not protocol.samples.exact else protocol.samples.count
    needed = needed if limited else protocol.reference.count or needed
    if len(reference) < needed:
        raise UserError(
            f"{args.reference}: has {len(reference):,} clips; must have {needed:,}, as many as are measured"
        )
    networks = build_networks(protocol, settings, torch.device("cpu"))
    for key, metric in protocol.metrics.items():
        figures.check_outputs(key, metric, networks[network_key(metric)].extractor)
    decisive = dataclasses.asdict(sampling)
    del decisive["attention"]  # changes samples by rounding alone
    choices = [
        protocols.sha256(protocol),
        {key: network.fingerprint for key, network in networks.items()},
        reference.fingerprint(),
        [args.task, str(args.input.resolve()) if args.input else "", count, decisive],
    ]
    digest = hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()
    return Measurement(args, protocol, count, limited, digest, settings.reference_features is not None)


def _sampling_overrides(args: argparse.Namespace) -> list[str]:
    return [text.removeprefix(PREFIX) for text in args.overrides if text.startswith(PREFIX)]


def _own(args: argparse.Namespace) -> argparse.Namespace:
    """Return ``args`` without the overrides that are settings of ``mmldm sample``."""
    return argparse.Namespace(
        configuration=args.configuration, overrides=[text for text in args.overrides if not text.startswith(PREFIX)]
    )


def _run(
    command: Callable[[argparse.Namespace], int],
    add_arguments: Callable[[argparse.ArgumentParser], None],
    words: Sequence[str],
) -> None:
    """Run ``command`` with ``words``, as the command line does; raise Failed if its status is not 0."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    status = command(parser.parse_intermixed_args(words))
    if status:
        raise Failed(status)


def _figure(part: dict[str, Any]) -> dict[str, Any]:
    low, high = part["interval"]
    return {**{key: part[key] for key in ("title", "value")}, "low": low, "high": high, "floor": part["floor"]}
