"""``mmldm memorisation``: the nearest training clip of each sample, compared with those that held-out clips have.

The output folder gets ``features/`` (see ``features/blocks.py``), ``memorisation.json`` and ``memorisation.html``, a
page with pictures of the closest pairs. Jobs share the blocks of features as those of ``mmldm evaluate`` do, and
whichever finds all of them made compares the sets.
"""

import argparse
import dataclasses
import functools
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmldm_scale.cluster import slurm
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.config import arguments, load
from mmldm_scale.config.evaluating import Evaluating
from mmldm_scale.evaluation import protocols
from mmldm_scale.evaluation.clip_sets import open_clip_set
from mmldm_scale.evaluation.evaluate import FEATURES
from mmldm_scale.evaluation.features.extraction import MeasuredSet, Network
from mmldm_scale.evaluation.features.sharing import SharedWork
from mmldm_scale.evaluation.memorisation import report
from mmldm_scale.evaluation.memorisation.neighbours import PERCENTILE, closeness, measure_mean, nearest
from mmldm_scale.evaluation.networks import build_networks, check_networks, network_key
from mmldm_scale.evaluation.protocols.protocol import Protocol
from mmldm_scale.evaluation.report.report import check_folder
from mmldm_scale.sampling import processes

FEWEST_HELD_OUT = round(1 / PERCENTILE)  # clips: of fewer, none is below the percentile
ROLES = {"samples": "--samples", "training": "--training", "held_out": "--held-out"}  # of the sets, and their options


@dataclass(frozen=True)
class _Plan:
    """A comparison whose arguments were checked; ``sets`` by the roles in :data:`ROLES`."""

    args: argparse.Namespace
    protocol: Protocol
    network: Network
    sets: dict[str, MeasuredSet]
    shared: SharedWork


def run(args: argparse.Namespace) -> int:
    """Run the job that ``args`` (of :mod:`mmldm_scale.evaluation.arguments`) describe; return the exit status.

    Raises:
        UserError: arguments, weights, clips or the output folder cannot be used; a signal ended the job.
    """
    place = processes.find_place()
    plan = _plan(args, place)
    if args.check:
        return _report_check(plan)
    write_report = functools.partial(_report, plan, place.speaks)
    return plan.shared.finish(place, args.processes, _words(plan), report.JSON, write_report)


def _plan(args: argparse.Namespace, place: processes.Place) -> _Plan:
    """Check everything that needs no weights, then load these."""
    settings = load(Evaluating, arguments.files(args, "evaluate"), args.overrides)
    protocol = _single(protocols.load(args.protocol), protocols.label(args.protocol), args.extractor)
    processes.check_processes(args.processes, args.device)
    part, parts = processes.parse_part(args.part) if args.part else slurm.array_share()
    check_networks(protocol, settings)
    clips = {role: open_clip_set(str(getattr(args, role))) for role in ROLES}
    if len(clips["held_out"]) < FEWEST_HELD_OUT:
        raise UserError(
            f"--held-out {args.held_out}: has {len(clips['held_out'])} clips; must have at least {FEWEST_HELD_OUT}, of "
            f"which 1 is below the {PERCENTILE:.0%} percentile"
        )
    check_folder(args.output)
    networks = build_networks(protocol, settings, place.device(args.device))
    folder = args.output / FEATURES
    shared = Path(settings.reference_features) if settings.reference_features else folder
    sets = {
        role: MeasuredSet(
            role, part_of, range(len(part_of)), protocol, networks, folder if role == "samples" else shared
        )
        for role, part_of in clips.items()
    }
    (network,) = networks.values()
    return _Plan(args, protocol, network, sets, SharedWork(list(sets.values()), part, parts))


def _single(protocol: Protocol, label: str, extractor: str) -> Protocol:
    """Return ``protocol`` with one metric alone, which uses ``extractor``.

    Raises:
        UserError: the protocol does not use it, uses it with several options, or so that a vector depends on the other
            clips of its batch.
    """
    names = sorted({metric.extractor for metric in protocol.metrics.values()})
    found = {network_key(metric): key for key, metric in protocol.metrics.items() if metric.extractor == extractor}
    if not found:
        raise UserError(f"--extractor {extractor:.80}: must be one of {', '.join(names)}, those of protocol {label}")
    if len(found) > 1:
        raise UserError(f"--extractor {extractor}: protocol {label} uses it with {len(found)} sets of options, not one")
    (key,) = found.values()
    metric = protocol.metrics[key]
    if metric.options.get("mode") == "training":
        raise UserError(
            f"--extractor {extractor}: is in training mode in protocol {label}, where a clip's vector depends on the "
            "others of its batch; choose a protocol with it in evaluation mode"
        )
    return dataclasses.replace(protocol, metrics={key: metric}, published=[])


def _report_check(plan: _Plan) -> int:
    """Print what ``mmldm memorisation --check`` has found; return 0."""
    for measured in plan.sets.values():
        measured.check_first()
    counts = ", ".join(f"{len(plan.sets[role].positions):,} {words}" for role, words in report.ROLE_WORDS.items())
    print(f"{plan.args.output}: {counts} can be compared; {plan.shared.summary()}")
    return 0


def _words(plan: _Plan) -> list[str]:
    """Return the command line, after ``mmldm``, of a process that shares the job of ``plan``."""
    args = plan.args
    options = {
        **{option: getattr(args, role) for role, option in ROLES.items()},
        "--protocol": args.protocol,
        "--extractor": args.extractor,
        "--output": args.output,
        "--device": args.device,
        "--part": f"{plan.shared.part + 1}/{plan.shared.parts}",
    }
    return ["memorisation", *(f"{name}={value}" for name, value in options.items()), *arguments.words(args)]


def _report(plan: _Plan, speaks: bool) -> None:
    """Compare the sets and write the report, unless another job has; print it.

    Raises:
        UserError: the output folder holds another report.
    """
    output: Path = plan.args.output
    facts = report.Facts(
        name=protocols.label(plan.args.protocol),
        protocol=plan.protocol,
        network=plan.network,
        sets=plan.sets,
        command=shlex.join(["mmldm", *_words(plan)]),
    )
    with Leases(output) as leases, leases.writing(output / report.JSON):
        if not report.is_written(output, facts):
            report.write(output, facts, _compare(plan))
    if speaks:
        print(report.text(output))
        print(f"the report is in {output / report.HTML} and {report.JSON}")


def _compare(plan: _Plan) -> report.Comparison:
    """Find the nearest training clips; all features are made."""
    ((key, _),) = plan.sets["samples"].networks.items()
    features = {role: plan.sets[role].features(key) for role in ("samples", "held_out")}
    for role, values in features.items():
        _check_numbers(plan.sets[role], values)

    def training() -> Iterator[np.ndarray]:
        for chunk in plan.sets["training"].stream(key):
            _check_numbers(plan.sets["training"], chunk)
            yield chunk

    mean = measure_mean(training)
    samples, held_out = (nearest(features[role], training, mean) for role in ("samples", "held_out"))
    protocol = plan.protocol
    close = closeness(samples.distances, held_out.distances, protocol.seed, protocol.resamples, protocol.level)
    return report.Comparison(samples, held_out, close)


def _check_numbers(measured: MeasuredSet, features: np.ndarray) -> None:
    if np.isnan(features).any():
        raise UserError(f"{measured.clips.path}: features of a clip are not numbers, so it has no distance")
