"""The content of ``table.json``: for each protocol the figures of our rows, the floor and the published rows."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mmldm_scale.evaluation import protocols
from mmldm_scale.evaluation.measures import Measures, Report
from mmldm_scale.evaluation.tables.request import Measured, Request

OF_COLUMN = (
    *("title", "direction", "network", "weights", "floor", "floor_clips", "floor_of", "floor_repeats", "level"),
    *("resamples", "note"),
)
OF_VALUE = ("value", "interval", "samples", "reference")
OF_SET = ("path", "kind", "fingerprint", "clips", "measured")
Reports = Mapping[tuple[str, str], Report]  # by row and data set


def content(request: Request, measured: Measured) -> dict[str, Any]:
    """Return the content of ``table.json``: JSON values that depend on the definition and the reports alone."""
    definition = request.definition
    return {
        "title": definition.title,
        "about": definition.about,
        "sets": {name: data.title for name, data in definition.sets.items()},
        "sizes": definition.sizes,
        "left_out": list(measured.left_out),
        "sections": [_section(request, measured, measures) for measures in request.measures],
        "not_comparable": [asdict(row) for row in definition.published if not row.protocol],
    }


def _section(request: Request, measured: Measured, measures: Measures) -> dict[str, Any]:
    """Return the part of the table that was measured under the protocol of ``measures``."""
    definition, label = request.definition, measures.label
    protocol, count = measures.protocol, request.args.num_samples
    reports = {(row, data): each for (name, row, data), each in measured.reports.items() if name == label}
    deviation = protocols.deviation(measures.name, protocol, count) if count else ""
    with_protocol = [row for row in definition.published if row.protocol]
    published = [row for row in with_protocol if row.protocol == label and not deviation]
    prefix = "r" if definition.ablation else ""  # rFVD: of reconstructions
    return {
        "protocol": {"name": label, "sha256": protocols.sha256(protocol), "title": protocol.title},
        "not_protocol": deviation,
        "columns": [
            {"set": data, "metric": metric, **column, "title": f"{prefix}{column['title']}"}
            for data in definition.sets
            for metric in protocol.metrics
            if (column := _column(reports, data, metric))
        ],
        "rows": [{**asdict(row), "values": _values(reports, row.name)} for row in measured.rows],
        "sets": {
            f"{row}/{data}": {role: _facts(each, role) for role in ("samples", "reference")}
            for (row, data), each in reports.items()
        },
        "not_measured": {
            f"{prefix}{protocol.metrics[key].title or key}": setting for key, setting in measures.left_out.items()
        },
        "published": [asdict(row) for row in published],
        "published_elsewhere": len(with_protocol) - len(published),
    }


def _column(reports: Reports, data: str, metric: str) -> dict[str, Any]:
    """Return what all figures ``metric`` of ``data``, whose reference is the same, share; empty if there are none."""
    figures = [
        each["figures"][metric] for (_, name), each in reports.items() if name == data and metric in each["figures"]
    ]
    return {key: figures[0][key] for key in OF_COLUMN} if figures else {}


def _values(reports: Reports, row: str) -> dict[str, dict[str, Any]]:
    """Return the figures of ``row`` by data set and metric."""
    return {
        data: {metric: {key: figure[key] for key in OF_VALUE} for metric, figure in each["figures"].items()}
        for (name, data), each in reports.items()
        if name == row
    }


def _facts(report: Report, role: str) -> dict[str, Any]:
    part = report["request"][role]
    return {key: part[key] for key in (*OF_SET, *(["split"] if role == "reference" else []))}
