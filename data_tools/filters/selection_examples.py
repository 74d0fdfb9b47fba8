"""Examples for the report of a selection: what was kept, and what each filter dropped, those closest to it.

The rows just outside a limit, beside those just inside, show whether the limit is where it should be.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ..config import Limits, Selection
from .apply_filters import FilteredRows, numbers
from .table import MEASURES

BELOW_TOP = ("below_top_of_label", "below_top")  # reasons of rows that were dropped by their rank


@dataclass(frozen=True)
class Example:
    """A candidate: its row in the table of measures, and what the report says of it."""

    row: int
    note: str


@dataclass(frozen=True)
class ExampleGroup:
    """What one filter dropped and kept; the group of no filter, titled "selected", shows what was kept by all."""

    title: str
    dropped: list[Example]
    kept: list[Example]


def choose_examples(table: pa.Table, filtered: FilteredRows, config: Selection, count: int) -> list[ExampleGroup]:
    """Return the groups of the report, with at most ``count`` rows dropped and ``count`` kept for each filter.

    The rows that were selected come first, spread evenly over their scores, twice as many. Then come the filters in the
    order in which they are applied, as far as they dropped anything.
    """
    if not count:
        return []
    kept = np.flatnonzero(filtered.inside)
    ranked = kept[np.argsort(-filtered.score[kept], kind="stable")]
    groups = [ExampleGroup("selected", [], _scored(filtered, ranked[_even(len(ranked), 2 * count)]))]
    reasons = list(dict.fromkeys(filtered.reason[~filtered.inside].tolist()))
    limited = {f"{side}_{name}": (name, limits) for name, limits in config.limits.items() for side in ("low", "high")}
    faults = [reason for reason in reasons if reason not in (*limited, "near_duplicate", *BELOW_TOP)]
    for reason in faults:
        rows = np.flatnonzero(filtered.reason == reason)
        groups.append(ExampleGroup(reason, _detailed(filtered, rows[_even(len(rows), count)]), []))
    for reason, (name, limits) in limited.items():
        if reason in reasons:
            groups.append(_at_limit(table, filtered, reason, name, limits, count))
    if "near_duplicate" in reasons:
        rows = np.flatnonzero(filtered.reason == "near_duplicate")
        rows = rows[_even(len(rows), count)]
        better = [Example(int(row), "the better one") for row in filtered.like[rows]]
        groups.append(ExampleGroup("near_duplicate", _detailed(filtered, rows), better))
    for reason in BELOW_TOP:
        if reason in reasons:
            rows = np.flatnonzero(filtered.reason == reason)
            best = rows[np.argsort(-filtered.score[rows], kind="stable")][:count]
            groups.append(ExampleGroup(reason, _scored(filtered, best), _scored(filtered, ranked[::-1][:count])))
    return groups


def _at_limit(
    table: pa.Table, filtered: FilteredRows, reason: str, name: str, limits: Limits, count: int
) -> ExampleGroup:
    """Return the rows that a limit dropped, and those that were selected, with the values closest to it."""
    is_low = reason.startswith("low_")
    bound = limits.min if is_low else limits.max
    assert bound is not None  # it dropped something
    values, unit = numbers(table, name), MEASURES[name].unit.partition(",")[0] if name in MEASURES else ""
    unit = "" if "–" in unit else unit  # a range, of a share

    def closest(rows: np.ndarray) -> list[Example]:
        order = np.argsort(np.abs(values[rows] - bound), kind="stable")[:count]
        return [Example(int(row), f"{name} {values[row]:.3g}") for row in rows[order]]

    title = f"{reason}: {name} must be at {'least' if is_low else 'most'} {bound:g} {unit}".rstrip()
    inside = np.flatnonzero(filtered.inside & np.isfinite(values))
    return ExampleGroup(title, closest(np.flatnonzero(filtered.reason == reason)), closest(inside))


def _even(length: int, count: int) -> np.ndarray:
    """Return at most ``count`` numbers below ``length``, evenly spread."""
    return np.linspace(0, max(0, length - 1), min(count, length)).round().astype(int)


def _scored(filtered: FilteredRows, rows: np.ndarray) -> list[Example]:
    return [Example(int(row), f"score {filtered.score[row]:.3f}") for row in rows]


def _detailed(filtered: FilteredRows, rows: np.ndarray) -> list[Example]:
    return [Example(int(row), str(filtered.detail[row])) for row in rows]
