"""AudioSet's labels: machine identifiers ("/m/04rlf"), their names ("Music"), and which lies below which.

``Ontology.read`` takes ontology.json, class_labels_indices.csv, or both; only the first knows branches.
"""

import csv
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmldm_scale.common.errors import UserError

MAX_BYTES = 64 << 20  # of a label file; the real ones have 15 and 340 kB


@dataclass(frozen=True)
class Ontology:
    """Names by identifier, and the identifiers just below each."""

    names: dict[str, str] = field(default_factory=dict)
    children: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, ontology: Path | None, label_names: Path | None) -> "Ontology":
        """Return the content of the files (None: missing); raise UserError if one has another format."""
        names: dict[str, str] = {}
        children: dict[str, list[str]] = {}
        if ontology is not None:
            for node in _read_nodes(ontology):
                names[node["id"]] = node["name"]
                children[node["id"]] = node["child_ids"]
        if label_names is not None:
            names |= _read_names(label_names)
        return cls(names, children)

    def branch(self, label: str) -> set[str]:
        """Return the identifiers of ``label`` (a name or an identifier) and of all below it.

        Raises UserError with the closest names if there is no such label.
        """
        pending = [mid for mid, name in self.names.items() if label in (mid, name)]
        if not pending:
            pending = [mid for mid, name in self.names.items() if label.lower() == name.lower()]
        if not pending:
            lower = {name.lower(): name for name in self.names.values()}
            close = [lower[name] for name in difflib.get_close_matches(label.lower(), lower, n=3, cutoff=0.5)]
            hint = f"; close to it: {', '.join(repr(name) for name in close)}" if close else ""
            raise UserError(f"{label!r}: no label of AudioSet{hint}")
        branch: set[str] = set()
        while pending:
            mid = pending.pop()
            if mid not in branch:
                branch.add(mid)
                pending += self.children.get(mid, ())
        return branch

    def branches(self, labels: Sequence[str]) -> set[str]:
        """Return the union of the branches of ``labels``; raise UserError as :meth:`branch`."""
        return set().union(*(self.branch(label) for label in labels))


def _read_nodes(file: Path) -> list[dict]:
    try:
        nodes = json.loads(_read_text(file))
        whole = all(
            isinstance(node["id"], str)
            and isinstance(node["name"], str)
            and isinstance(node["child_ids"], list)
            and all(isinstance(child, str) for child in node["child_ids"])
            for node in nodes
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{file}: not AudioSet's ontology; must be a JSON list of objects with id, name and child_ids")
    return nodes


def _read_names(file: Path) -> dict[str, str]:
    rows = csv.DictReader(_read_text(file).splitlines(), skipinitialspace=True)
    try:
        return {row["mid"]: row["display_name"] for row in rows if row["mid"] and row["display_name"]}
    except (KeyError, csv.Error):
        raise UserError(f"{file}: not AudioSet's label index; must be CSV with index,mid,display_name") from None


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UserError(f"{file}: larger than {MAX_BYTES >> 20} MiB, so no label file of AudioSet")
        return file.read_text("utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not text in UTF-8") from None
