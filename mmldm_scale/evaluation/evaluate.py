"""``mmldm evaluate``: figures of samples against a reference, under a named protocol.

The output folder gets ``features/`` (see ``features/blocks.py``), ``report.json``, ``report.md``, ``report.html`` and
``tensorboard/``. Jobs share the blocks of features; whichever finds all of them made writes the report, which is a
function of the features in their order. So it is the same for any number of jobs, and a killed job is resumed by the
same command.
"""

import argparse
import functools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmldm_scale.cluster import slurm
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.config import arguments, load
from mmldm_scale.config.evaluating import Evaluating
from mmldm_scale.evaluation import figures, protocols
from mmldm_scale.evaluation.clip_sets import open_clip_set
from mmldm_scale.evaluation.clip_sets.clip_set import ClipSet
from mmldm_scale.evaluation.features.extraction import MeasuredSet, Network
from mmldm_scale.evaluation.features.sharing import SharedWork
from mmldm_scale.evaluation.networks import build_networks, check_networks, network_key, report_weights
from mmldm_scale.evaluation.protocols.protocol import SMALLEST, Protocol
from mmldm_scale.evaluation.report import report
from mmldm_scale.sampling import processes

FEATURES = "features"  # subfolder of the output folder


@dataclass(frozen=True)
class _Plan:
    """An evaluation whose arguments were checked.

    Attributes:
        shared: the blocks of samples and reference, and this job's share.
        limited: how the number of samples deviates from the protocol's, in words; "" if it does not.
    """

    args: argparse.Namespace
    settings: Evaluating
    protocol: Protocol
    networks: dict[str, Network]
    samples: MeasuredSet
    reference: MeasuredSet
    shared: SharedWork
    limited: str


def run(args: argparse.Namespace) -> int:
    """Run the job that ``args`` (of :mod:`mmldm_scale.evaluation.arguments`) describe; return the exit status.

    Raises:
        UserError: arguments, protocol, weights, clips or the output folder cannot be used; a signal ended the job.
    """
    settings = load(Evaluating, arguments.files(args, "evaluate"), args.overrides)
    protocol = _load_protocol(args)
    if args.check_weights:
        return report_weights(protocol, settings)
    place = processes.find_place()
    plan = _plan(args, settings, protocol, place)
    if args.check:
        return _report_check(plan)
    write_report = functools.partial(_report, plan, place.speaks)
    return plan.shared.finish(place, args.processes, _words(plan), report.JSON, write_report)


def _load_protocol(args: argparse.Namespace) -> Protocol:
    """Return the protocol with what ``--metrics`` and ``--paired`` change in it.

    Raises:
        UserError: there is no such protocol, it is not valid, or it has no such metric.
    """
    protocol = protocols.load(args.protocol)
    if args.metrics is not None:
        keys = args.metrics.split(",")
        unknown = [key for key in keys if key not in protocol.metrics]
        if unknown:
            raise UserError(f"--metrics {unknown[0]}: must be of {', '.join(protocol.metrics)}")
        protocol = protocols.only(protocol, keys)
    return protocols.paired(protocol) if args.paired else protocol


def _plan(args: argparse.Namespace, settings: Evaluating, protocol: Protocol, place: processes.Place) -> _Plan:
    """Check everything that needs no weights, then load these."""
    processes.check_processes(args.processes, args.device)
    part, parts = processes.parse_part(args.part) if args.part else slurm.array_share()
    for option, path in (("--samples", args.samples), ("--reference", args.reference), ("--output", args.output)):
        if path is None:
            raise UserError(f"{option}: not given; only --check-weights does without")
    check_networks(protocol, settings)
    samples, reference = open_clip_set(str(args.samples)), open_clip_set(str(args.reference))
    chosen, limited = _choose_samples(args, protocol, samples)
    opposite = _choose_reference(args, protocol, reference, [samples.names[i] for i in chosen])
    report.check_folder(args.output)
    networks = build_networks(protocol, settings, place.device(args.device))
    for key, metric in protocol.metrics.items():
        figures.check_outputs(key, metric, networks[network_key(metric)].extractor)
    folder = args.output / FEATURES
    shared = Path(settings.reference_features) if settings.reference_features else folder
    measured = (
        MeasuredSet("samples", samples, chosen, protocol, networks, folder),
        MeasuredSet("reference", reference, opposite, protocol, networks, shared),
    )
    return _Plan(args, settings, protocol, networks, *measured, SharedWork(measured, part, parts), limited)


def _choose_samples(args: argparse.Namespace, protocol: Protocol, clips: ClipSet) -> tuple[list[int], str]:
    """Return the positions of the samples to measure, and how their number deviates from the protocol's, in words."""
    config, available, asked = protocol.samples, len(clips), args.num_samples
    if asked is not None and not SMALLEST <= asked <= available:
        raise UserError(f"--num-samples {asked}: must be {SMALLEST} to {available}, the samples in {args.samples}")
    name = protocols.label(args.protocol)
    if asked is None and available < config.count:
        raise UserError(
            f"{args.samples}: has {available:,} samples; protocol {name} needs {config.count:,}. Make more, or try it "
            "with --num-samples, which marks the figures as not of this protocol"
        )
    count = asked or (config.count if config.exact else available)
    deviations = list(filter(None, [protocols.deviation(args.protocol, protocol, count)]))
    if args.paired:
        deviations = deviations or [f"protocol {name}, but for the reference"]
        deviations.append("each sample is compared with the clip of its name")
    return _spread(count, available), "; ".join(deviations)


def _choose_reference(args: argparse.Namespace, protocol: Protocol, clips: ClipSet, names: Sequence[str]) -> list[int]:
    """Return the positions of the reference clips for samples of ``names``."""
    if protocol.reference.paired:
        positions = {name: position for position, name in enumerate(clips.names)}
        lone = [name for name in names if name not in positions]
        if lone:
            where = f"{args.reference}: has no clip for {len(lone)} of {len(names)} samples, such as {lone[0]}"
            raise UserError(f"{where}; each sample is compared with the clip of its name")
        return [positions[name] for name in names]
    count = len(names) if args.num_samples else protocol.reference.count or len(names)
    if len(clips) < count:
        raise UserError(
            f"{args.reference}: has {len(clips):,} clips; protocol {protocols.label(args.protocol)} needs {count:,} "
            f"of the {protocol.reference.split}"
        )
    return _spread(count, len(clips))


def _spread(count: int, available: int) -> list[int]:
    return [i * available // count for i in range(count)]


def _report_check(plan: _Plan) -> int:
    """Print what ``mmldm evaluate --check`` has found; return 0."""
    for measured in (plan.samples, plan.reference):
        measured.check_first()
    counts = f"{len(plan.samples.positions):,} samples, {len(plan.reference.positions):,} reference clips"
    titles = ", ".join(metric.title or key for key, metric in plan.protocol.metrics.items())
    deviates = f" ({plan.limited})" if plan.limited else ""
    print(f"{plan.args.output}: {titles} of {counts} can be measured{deviates}; {plan.shared.summary()}")
    return 0


def _words(plan: _Plan) -> list[str]:
    """Return the command line of ``plan``, after ``mmldm``, without what says how work is shared."""
    args = plan.args
    options = {
        "--samples": args.samples,
        "--reference": args.reference,
        "--protocol": args.protocol,
        "--output": args.output,
        "--num-samples": args.num_samples,
        "--metrics": args.metrics,
        "--device": args.device,
    }
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    return ["evaluate", *given, *(["--paired"] if args.paired else []), *arguments.words(args)]


def _report(plan: _Plan, speaks: bool) -> None:
    """Compute the figures and write the report, unless another job has; print it.

    Raises:
        UserError: the output folder holds the report of another evaluation.
    """
    args, protocol = plan.args, plan.protocol
    same = plan.samples.clips.fingerprint() == plan.reference.clips.fingerprint()
    facts = report.Facts(
        name=protocols.label(args.protocol),
        protocol=protocol,
        protocol_sha256=protocols.sha256(protocols.load(args.protocol)),
        limited="; ".join(filter(None, [plan.limited, "the samples are the reference clips themselves" * same])),
        samples=plan.samples,
        reference=plan.reference,
        networks=plan.networks,
        command=shlex.join(["mmldm", *_words(plan)]),
    )
    with Leases(args.output) as leases, leases.writing(args.output / report.JSON):
        if not report.is_written(args.output, facts):
            report.write(args.output, facts, _figures(plan))
    if speaks:
        print(report.table(args.output))
        print(f"the report is in {args.output / report.HTML}, {report.MARKDOWN} and {report.JSON}")


def _figures(plan: _Plan) -> list[figures.Figure]:
    """Return the figures of the protocol; all features are made.

    Raises:
        UserError: samples are copies of each other, which the protocol refuses.
    """
    names = {measured.role: measured.names for measured in (plan.samples, plan.reference)}
    if not plan.protocol.samples.repeats:
        _refuse_copies(plan)
    computed = []
    for key, metric in plan.protocol.metrics.items():
        samples, reference = (measured.features(network_key(metric)) for measured in (plan.samples, plan.reference))
        computed.append(figures.compute(key, plan.protocol, samples, reference, names))
    return computed


def _refuse_copies(plan: _Plan) -> None:
    """Raise UserError if two samples are the same for every network, of which some have more than one number."""
    made = [plan.samples.features(network) for network in plan.networks]
    if max(features.shape[1] for features in made) == 1:
        return
    copies = figures.copies(np.concatenate(made, axis=1))
    if copies:
        first, other = (plan.samples.names[i] for i in copies[0])
        raise UserError(
            f"{plan.args.samples}: {len(copies)} samples are the same as others to all networks, such as {other} as "
            f"{first}; protocol {protocols.label(plan.args.protocol)} allows no copies"
        )
