"""Protocols: every choice behind a figure, in one YAML file each, beside this file.

    protocols.names()                 # ["clean", "cmmd", …]
    protocols.load("mmdiffusion")     # the shipped one
    protocols.load("mine.yaml")       # a file of one's own

To add a protocol to the package, add its file. ``protocol.py`` has the keys.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path

from mmldm_scale import config
from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.protocols.protocol import Protocol, ReferenceConfig

FOLDER = Path(__file__).parent
SUFFIX = ".yaml"


def names() -> list[str]:
    """Return the names of the shipped protocols, sorted."""
    return sorted(file.stem for file in FOLDER.glob(f"*{SUFFIX}"))


def load(name: str) -> Protocol:
    """Return the protocol ``name``: that of a shipped file, or the path of a YAML file.

    Raises:
        UserError: there is no such protocol or file, one of its keys or values is wrong, or the file has published rows
            of a shipped protocol beside other choices than that one's.
    """
    if name in names():
        return config.load(Protocol, [FOLDER / f"{name}{SUFFIX}"])
    if not name.endswith((".yaml", ".yml")):
        raise UserError(f"--protocol {name:.80}: must be one of {', '.join(names())}, or the path of a YAML file")
    protocol = config.load(Protocol, [name])
    for shipped in names() if protocol.published else []:
        original = load(shipped)
        borrowed = [row.label for row in protocol.published if row in original.published]
        if borrowed and sha256(protocol) != sha256(original):
            raise UserError(
                f"{name}: published: {borrowed[0]}'s figures were measured under protocol {shipped}, whose choices are "
                "other than this file's; remove the key published"
            )
    return protocol


def only(protocol: Protocol, metrics: Collection[str]) -> Protocol:
    """Return ``protocol`` with those of its metrics alone whose keys are in ``metrics``, which must not be empty."""
    rows = [
        replace(row, values={key: value for key, value in row.values.items() if key in metrics})
        for row in protocol.published
    ]
    kept = {key: metric for key, metric in protocol.metrics.items() if key in metrics}
    return replace(protocol, metrics=kept, published=[row for row in rows if row.values])


def paired(protocol: Protocol) -> Protocol:
    """Return ``protocol`` with the clip of each sample's name as its reference."""
    return replace(protocol, reference=ReferenceConfig(split="the clip of each sample's name", paired=True))


def deviation(name: str, protocol: Protocol, count: int) -> str:
    """Return in words how ``count`` samples deviate from ``protocol``, which is called ``name``; "" if they do not."""
    config = protocol.samples
    if count == config.count or (count > config.count and not config.exact):
        return ""
    return f"not protocol {label(name)}: {count:,} of {config.count:,} samples"


def label(name: str) -> str:
    """Return what reports call the protocol ``name``: its own name, or that of its file."""
    return name if name in names() else Path(name).name


def sha256(protocol: Protocol) -> str:
    """Return the sha256 (hex) of all choices of ``protocol``; titles, texts and published rows do not count."""
    choices = asdict(protocol)
    for key in ("title", "about", "published"):
        choices.pop(key)
    for metric in choices["metrics"].values():
        metric.pop("title")
    return hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()
