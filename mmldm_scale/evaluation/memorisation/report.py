"""Writes ``memorisation.json`` and ``memorisation.html``; the JSON is written last: where it is, the page is, too."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.pages import render
from mmldm_scale.evaluation import protocols
from mmldm_scale.evaluation.features.extraction import MeasuredSet, Network
from mmldm_scale.evaluation.memorisation.neighbours import PERCENTILE, Closeness, Neighbours
from mmldm_scale.evaluation.memorisation.pictures import ClipPictures
from mmldm_scale.evaluation.protocols.protocol import Protocol
from mmldm_scale.evaluation.report.charts import histogram

JSON, HTML = "memorisation.json", "memorisation.html"
REQUEST = "request"  # key of what the comparison depends on
PAIRS = 24  # of the closest ones on the page
ROLE_WORDS = {"samples": "samples", "held_out": "held-out clips", "training": "training clips"}
DISTANCE = "1 − cosine of the features less the mean of the training clips; 0 for copies, about 1 for unrelated clips"


@dataclass(frozen=True)
class Facts:
    """What a comparison depends on.

    Attributes:
        name: of the protocol.
        protocol: with one metric, that of the network.
        sets: by the roles in :data:`ROLE_WORDS`.
        command: the command line.
    """

    name: str
    protocol: Protocol
    network: Network
    sets: Mapping[str, MeasuredSet]
    command: str

    def request(self) -> dict[str, Any]:
        """Return what the comparison depends on, as JSON values."""
        network = self.network
        return {
            "protocol": self.name,
            "protocol_sha256": protocols.sha256(self.protocol),  # with this network alone
            "extractor": {"name": network.name, "options": dict(network.options), "weights": network.fingerprint},
            **{role: {"fingerprint": part.fingerprint, "clips": len(part.clips)} for role, part in self.sets.items()},
        }


@dataclass(frozen=True)
class Comparison:
    """The nearest training clips of samples and held-out clips, and how much closer the samples are."""

    samples: Neighbours
    held_out: Neighbours
    closeness: Closeness


def is_written(folder: Path, facts: Facts) -> bool:
    """Return whether ``folder`` holds the report that ``facts`` describe; raise UserError if it holds another."""
    if not (folder / JSON).exists():
        return False
    there, wanted = _read(folder)[REQUEST], json.loads(json.dumps(facts.request()))
    differing = [key for key in wanted if wanted[key] != there.get(key)]
    if differing:
        raise UserError(f"{folder / JSON}: is of another comparison ({', '.join(differing)}); choose another --output")
    return True


def write(folder: Path, facts: Facts, comparison: Comparison) -> None:
    """Write the report on ``comparison`` into ``folder``.

    Raises:
        UserError: the disk is full, or a clip that is shown cannot be read.
    """
    content = _content(facts, comparison)
    write_whole(folder / HTML, _page(content, facts, comparison).encode())
    write_whole(folder / JSON, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def text(folder: Path) -> str:
    """Return the result in ``folder`` for the terminal."""
    content = _read(folder)
    return "\n".join([_heading(content), *_lines(content)])


def _content(facts: Facts, comparison: Comparison) -> dict[str, Any]:
    close, protocol = comparison.closeness, facts.protocol
    distances = {"samples": comparison.samples, "held_out": comparison.held_out}
    return {
        "closer_samples": {
            "share": close.share,
            "interval": [close.low, close.high],
            "level": protocol.level,
            "resamples": protocol.resamples,
            "expected": PERCENTILE,
            "threshold": close.threshold,
        },
        "closer_than_every_held_out_clip": int(
            (comparison.samples.distances < comparison.held_out.distances.min()).sum()
        ),
        "held_out_copies": int((comparison.held_out.distances == 0).sum()),
        "distance": DISTANCE,
        "network": facts.network.extractor.title,
        "medians": {role: float(np.median(part.distances)) for role, part in distances.items()},
        "nearest": {role: _nearest(facts, role, part) for role, part in distances.items()},
        "paths": {role: str(part.clips.path) for role, part in facts.sets.items()},
        REQUEST: facts.request(),
        "command": facts.command,
    }


def _nearest(facts: Facts, role: str, neighbours: Neighbours) -> list[dict[str, Any]]:
    """Return each clip of the set ``role`` with its nearest training clip, the closest pair first."""
    names, training = facts.sets[role].names, facts.sets["training"].names
    return [
        {"clip": names[i], "training_clip": training[neighbours.positions[i]], "distance": neighbours.distances[i]}
        for i in np.argsort(neighbours.distances, kind="stable").tolist()
    ]


def _heading(content: Mapping[str, Any]) -> str:
    close = content["closer_samples"]
    low, high = close["interval"]
    return (
        f"{close['share']:.1%} of the samples ({close['level']:.0%} interval {low:.1%} to {high:.1%}) are closer to a "
        f"training clip than {1 - PERCENTILE:.0%} of the held-out clips are"
    )


def _lines(content: Mapping[str, Any]) -> list[str]:
    """Return in lines what was compared, and the result in other words."""
    request, close, medians = content[REQUEST], content["closer_samples"], content["medians"]
    counts = [f"{request[role]['clips']:,} {words}" for role, words in ROLE_WORDS.items()]
    closest, closer = content["nearest"]["samples"][0], content["closer_than_every_held_out_clip"]
    copies = content["held_out_copies"]
    lines = [
        f"about {PERCENTILE:.0%} are expected of samples that are as far from the training clips as held-out clips are",
        f"closest: {closest['clip']} to {closest['training_clip']}, distance {closest['distance']:.4g}",
        f"distances: held-out clips {PERCENTILE:.0%} below {close['threshold']:.4g}, median {medians['held_out']:.4g}; "
        f"samples median {medians['samples']:.4g}",
        f"{closer:,} samples are closer to a training clip than every held-out clip",
        f"protocol {request['protocol']}, {content['network']}: {', '.join(counts)}",
    ]
    if copies:
        lines.append(f"{copies:,} of the held-out clips are copies of training clips: the comparison is too lenient")
    return lines


def _page(content: Mapping[str, Any], facts: Facts, comparison: Comparison) -> str:
    pictures, pairs = ClipPictures(), []
    places = np.argsort(comparison.samples.distances, kind="stable")[:PAIRS].tolist()
    for pair, i in zip(content["nearest"]["samples"], places, strict=False):
        sample = facts.sets["samples"].record(i)
        training = facts.sets["training"].record(int(comparison.samples.positions[i]))
        pairs.append({**pair, "pictures": [pictures.address(sample), pictures.address(training)]})
    distances = [("samples", comparison.samples.distances), ("held-out clips", comparison.held_out.distances)]
    return render(
        Path(__file__).with_name("memorisation.html"),
        title="Memorisation",
        heading=_heading(content),
        lines=_lines(content),
        distance=content["distance"],
        chart=histogram(distances, content["closer_samples"]["threshold"], f"{PERCENTILE:.0%} of held-out clips"),
        pairs=pairs,
        sets=[
            f"{words}: {content['paths'][role]}, fingerprint {content[REQUEST][role]['fingerprint']}"
            for role, words in ROLE_WORDS.items()
        ],
        weights=facts.network.fingerprint,
        command=content["command"],
    )


def _read(folder: Path) -> dict[str, Any]:
    """Return the content of the report in ``folder``; raise UserError if it cannot be read."""
    try:
        content: dict[str, Any] = json.loads((folder / JSON).read_text())
        content[REQUEST].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / JSON}: cannot be read: {error}; remove it") from None
    return content
