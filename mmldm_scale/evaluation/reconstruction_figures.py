"""rFVD, rKVD, rFAD and others: reconstructions that were kept without loss, measured against their originals.

A figure of reconstructions has the name of the protocol's figure with an r before it. Its reference are the originals
of the reconstructions (``mmldm evaluate --paired``), whatever the protocol takes for samples.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.measures import Measures, Report, measure
from mmldm_scale.evaluation.reconstruction import LOSSLESS
from mmldm_scale.evaluation.report.markdown import ARROWS, DIGITS, heading, shown


def measure_reconstructions(
    measures: Measures, results: Path, originals: Path, count: int, files: Sequence[Path], options: Sequence[object]
) -> Report:
    """Measure the ``count`` reconstructions in the folder ``results``, as far as that is not done; return the report.

    Args:
        originals: the set of clips that they are of.
        files: settings of ``mmldm evaluate``.
        options: further arguments of it.

    Raises:
        UserError, CommandFailed: as :func:`~mmldm_scale.evaluation.measures.measure`; other jobs are at it, too.
    """
    sets = ["--samples", results / LOSSLESS, "--reference", originals, "--paired", "--num-samples", count]
    settings = [part for file in files for part in ("--config", file)]
    report = measure(measures, measures.metrics, results / measures.label, [*sets, *settings, *options])
    if report is None:
        raise UserError(f"{results}: other jobs are measuring these reconstructions; run it again when they are done")
    return report


def cells(reports: Mapping[str, Report]) -> dict[str, str]:
    """Return the figures of ``reports``, which are by protocol, with their intervals, by the heading of the column."""
    return {
        f"{_title(figure)}{f' ({label})' if len(reports) > 1 else ''}": (
            f"{shown(figure['value'])} [{shown(figure['interval'][0])}, {shown(figure['interval'][1])}]"
        )
        for label, report in reports.items()
        for figure in report["figures"].values()
    }


def facts(reports: Mapping[str, Report]) -> list[str]:
    """Return in lines what stands behind the figures of ``reports``, those of one variant by protocol."""
    lines = []
    for report in reports.values():
        part = report["request"]["reference"]
        lines.append(f"{heading(report)}; {part['measured']:,} clips of {part['path']}")
        lines += [
            f"{_title(figure)}: {figure['network']}, weights {figure['weights'][:DIGITS]}; brackets: the interval of "
            f"{figure['level']:.0%}; floor {shown(figure['floor'])} with {figure['floor_clips']:,} clips"
            for figure in report["figures"].values()
        ]
    return lines


def _title(figure: Mapping[str, Any]) -> str:
    return f"r{figure['title']} {ARROWS[figure['direction']]}"
