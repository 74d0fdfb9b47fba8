"""Writes the report of an evaluation: ``report.json``, and from it ``report.md``, ``report.html``, ``tensorboard/``.

A figure stands in it with its protocol, the counts and fingerprints of both sets, the fingerprint of the network's
weights, its interval and its floor. ``report.json`` is written last: where it is, the others are complete.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import summary

import mmldm_scale
from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.pages import render
from mmldm_scale.evaluation.features.extraction import MeasuredSet, Network
from mmldm_scale.evaluation.figures import Figure, number
from mmldm_scale.evaluation.networks import network_key
from mmldm_scale.evaluation.protocols.protocol import Protocol
from mmldm_scale.evaluation.report import markdown
from mmldm_scale.evaluation.report.charts import Bar, bars, boxes
from mmldm_scale.runs.event_file import EventFile

JSON, MARKDOWN, HTML, TENSORBOARD = "report.json", "report.md", "report.html", "tensorboard"
REQUEST = "request"  # key of what the figures depend on
PACKAGES = ("numpy", "torch", "torchvision", "torchaudio", "transformers")  # whose versions are recorded


@dataclass(frozen=True)
class Facts:
    """What figures depend on.

    Attributes:
        name: of the protocol.
        limited: how the evaluation deviates from the protocol, in words; "" if it does not.
        command: the command line.
    """

    name: str
    protocol: Protocol
    protocol_sha256: str
    limited: str
    samples: MeasuredSet
    reference: MeasuredSet
    networks: Mapping[str, Network]
    command: str

    def request(self) -> dict[str, Any]:
        """Return what the figures depend on, as JSON values."""
        return {
            "protocol": {"name": self.name, "sha256": self.protocol_sha256, **_choices(self.protocol)},
            "not_protocol": self.limited,
            "samples": _set_facts(self.samples),
            "reference": {**_set_facts(self.reference), "split": self.protocol.reference.split},
            "networks": {
                key: {
                    "extractor": network.name,
                    "title": network.extractor.title,
                    "options": dict(network.options),
                    "weights": network.fingerprint,
                }
                for key, network in self.networks.items()
            },
        }


def check_folder(folder: Path) -> None:
    """Make the folder ``folder``; raise UserError if it cannot be one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be used as output folder: {error.strerror}") from None


def is_written(folder: Path, facts: Facts) -> bool:
    """Return whether ``folder`` holds the report of the evaluation that ``facts`` describe.

    Raises:
        UserError: it holds that of another one.
    """
    if not (folder / JSON).exists():
        return False
    there, wanted = read(folder)[REQUEST], json.loads(json.dumps(facts.request()))
    differing = [key for key in wanted if _identity(wanted[key]) != _identity(there.get(key))]
    if differing:
        raise UserError(f"{folder / JSON}: is of another evaluation ({', '.join(differing)}); choose another --output")
    return True


def write(folder: Path, facts: Facts, figures: Sequence[Figure]) -> None:
    """Write the report on ``figures`` into ``folder``; raise UserError if the disk is full."""
    content: dict[str, Any] = {
        "figures": {figure.key: _figure_values(figure, facts) for figure in figures},
        REQUEST: facts.request(),
        "published": [] if facts.limited else [asdict(row) for row in facts.protocol.published],
        "versions": _versions(),
        "command": facts.command,
        "by_clip": {
            figure.key: dict(zip(facts.samples.names, map(number, figure.by_clip), strict=True))
            for figure in figures
            if figure.by_clip is not None
        },
    }
    _write_events(folder, facts.name, figures)
    write_whole(folder / MARKDOWN, markdown.text(content).encode())
    write_whole(folder / HTML, _page(content, figures).encode())
    write_whole(folder / JSON, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def table(folder: Path) -> str:
    """Return the figures of the report in ``folder`` as a table for the terminal."""
    return markdown.terminal(read(folder))


def _choices(protocol: Protocol) -> dict[str, Any]:
    choices = asdict(protocol)
    choices.pop("published")
    return choices


def _set_facts(measured: MeasuredSet) -> dict[str, Any]:
    return {
        "path": str(measured.clips.path),
        "kind": measured.clips.kind,
        "fingerprint": measured.fingerprint,
        "clips": len(measured.clips),
        "measured": len(measured.positions),
    }


def _identity(value: Any) -> Any:
    """Return ``value``, of a request, without what may change: a set may have been moved, titles be worded anew."""
    ignored = ("path", "title", "about")
    return {key: _identity(v) for key, v in value.items() if key not in ignored} if isinstance(value, dict) else value


def _figure_values(figure: Figure, facts: Facts) -> dict[str, Any]:
    protocol = facts.protocol
    metric = protocol.metrics[figure.key]
    network = facts.networks[network_key(metric)]
    return {
        "title": figure.title,
        "value": number(figure.value),
        "interval": [number(figure.low), number(figure.high)],
        "level": protocol.level,
        "resamples": protocol.resamples,
        "floor": number(figure.floor),
        "floor_of": figure.floor_text,
        "samples_at_floor_counts": number(figure.floor_samples),
        "floor_clips": figure.floor_clips,
        "floor_repeats": protocol.floor_repeats,
        "direction": figure.direction,
        "scale": metric.scale,
        "distance": metric.distance,
        "network": network.extractor.title,
        "weights": network.fingerprint,
        "samples": len(facts.samples.positions),
        "reference": len(facts.reference.positions),
        "note": figure.note,
    }


def _versions() -> dict[str, str]:
    versions = {"mmldm_scale": mmldm_scale.__version__, "python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _write_events(folder: Path, name: str, figures: Sequence[Figure]) -> None:
    with EventFile(folder / TENSORBOARD) as events:
        for figure in figures:
            for part, value in (("", figure.value), ("/low", figure.low), ("/high", figure.high)):
                events.add(summary.scalar(f"{name}/{figure.key}{part}", value), 0)
            events.add(summary.scalar(f"{name}/{figure.key}/floor", figure.floor), 0)


def _page(content: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    return render(
        Path(__file__).with_name("report.html"),
        title=markdown.heading(content),
        lines=markdown.facts(content),
        charts=[_chart(content, figure) for figure in figures],
        columns=markdown.COLUMNS,
        rows=markdown.rows(content),
        published=markdown.published(content),
        choices=markdown.choices(content),
    )


def _chart(content: Mapping[str, Any], figure: Figure) -> dict[str, Any]:
    """Return what the page shows of ``figure``."""
    values: list[Bar] = [
        ("these samples", figure.value, (figure.low, figure.high)),
        (f"{figure.floor_clips:,} of them, as the floor", figure.floor_samples, None),
    ]
    for row in content["published"]:
        if figure.key in row["values"]:
            values.append((f"{row['label']}, {row['data']}", row["values"][figure.key], None))
    clips = [("samples", figure.by_clip or []), ("reference", figure.by_reference_clip or [])]
    return {
        "title": figure.title,
        "figure": content["figures"][figure.key],
        "bars": bars(values, figure.floor, own=2),
        "boxes": boxes(clips),
    }


def read(folder: Path) -> dict[str, Any]:
    """Return the content of the report in ``folder``; raise UserError if it cannot be read."""
    try:
        content: dict[str, Any] = json.loads((folder / JSON).read_text())
        for key in (REQUEST, "figures"):
            content[key].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / JSON}: cannot be read: {error}; remove it") from None
    return content
