"""The report of a selection: counts by reason and by label, and a histogram of each measure."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import Selection
from .apply_filters import FilteredRows, numbers
from .table import MEASURES

BINS = 40
TAIL = 0.5  # percent at either end that a histogram may gather in its first and last bin


@dataclass(frozen=True)
class Histogram:
    """How a measure is spread over the rows that have it.

    Attributes:
        edges: BINS + 1 of them; what lies beyond is counted in the first or last bin.
        measured, selected: rows in each bin, of all and of those selected.
        missing: rows without the measure.
    """

    edges: list[float]
    measured: list[int]
    selected: list[int]
    missing: int


@dataclass(frozen=True)
class SelectionReport:
    """A selection in numbers; ``train + heldout + dropped == rows`` always holds.

    Attributes:
        measures: the folder with the table.
        selection: the configuration.
        rows, train, heldout, dropped: candidates.
        reasons: how many were dropped for each reason, the most frequent first; each row has one.
        outside: by measure, how many faultless rows fail its limits ("low", "high", "no"), whatever dropped them first.
        labels: by label, {"rows", "train", "heldout"}, the most rows first; a row counts for each of its labels.
        crowded: rows that were not compared with all candidates for near-duplicates, since too many are alike.
        histograms: by measure.
    """

    measures: str
    selection: dict[str, Any]
    rows: int
    train: int
    heldout: int
    dropped: int
    reasons: dict[str, int]
    outside: dict[str, dict[str, int]]
    labels: dict[str, dict[str, int]]
    crowded: int
    histograms: dict[str, Histogram]

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return asdict(self)


def describe(
    measures: Path, config: Selection, table: pa.Table, filtered: FilteredRows, apart: np.ndarray
) -> SelectionReport:
    """Return the report of what ``filtered`` left of ``table``; ``apart``, (N,) bool, is what may not be trained on."""
    train, heldout = filtered.inside & ~apart, filtered.inside & apart
    return SelectionReport(
        measures=str(measures.resolve()),
        selection=asdict(config),
        rows=table.num_rows,
        train=int(train.sum()),
        heldout=int(heldout.sum()),
        dropped=int((~filtered.inside).sum()),
        reasons=_counts(pa.array(filtered.reason[~filtered.inside], pa.string())),
        outside=filtered.outside,
        labels=_label_counts(table["labels"], {"rows": np.ones(len(train), bool), "train": train, "heldout": heldout}),
        crowded=filtered.crowded,
        histograms=_histograms(table, filtered.inside, config),
    )


def _counts(values: pa.Array) -> dict[str, int]:
    """Return how often each value occurs, the most frequent first, equals by name."""
    pairs = ((entry["values"], entry["counts"]) for entry in values.value_counts().to_pylist())
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def _label_counts(labels: pa.ChunkedArray, parts: dict[str, np.ndarray]) -> dict[str, dict[str, int]]:
    counts = {part: _counts(pc.list_flatten(labels.filter(pa.array(rows)))) for part, rows in parts.items()}
    return {label: {part: counts[part].get(label, 0) for part in parts} for label in counts["rows"]}


def _histograms(table: pa.Table, inside: np.ndarray, config: Selection) -> dict[str, Histogram]:
    shown = [name for name, measure in MEASURES.items() if pa.types.is_primitive(measure.type) and measure.unit]
    histograms = {}
    for name in dict.fromkeys([*shown, *config.limits, *config.rank]):
        values = numbers(table, name)
        known = np.isfinite(values)
        if known.any():
            limits = config.limits.get(name)
            bounds = [] if limits is None else [bound for bound in (limits.min, limits.max) if bound is not None]
            histograms[name] = _histogram(values[known], inside[known], bounds, int((~known).sum()))
    return histograms


def _histogram(values: np.ndarray, selected: np.ndarray, bounds: list[float], missing: int) -> Histogram:
    low, high = np.percentile(values, [TAIL, 100 - TAIL])
    low, high = min(low, *bounds, high), max(high, *bounds, low)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    bins = np.clip(np.searchsorted(edges, values, "right") - 1, 0, BINS - 1)
    return Histogram(
        edges=[float(f"{edge:.6g}") for edge in edges],
        measured=np.bincount(bins, minlength=BINS).tolist(),
        selected=np.bincount(bins[selected], minlength=BINS).tolist(),
        missing=missing,
    )
