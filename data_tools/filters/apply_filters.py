"""Filters of a selection: which rows of the table of measures pass, and the reason why each of the others does not."""

import difflib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmldm_scale.common.errors import UserError

from ..config import Limits, Selection
from .duplicates import find_duplicates
from .perceptual_hash import BYTES
from .ranking import places_within, scores, stable_hashes
from .table import SCHEMA

NUMBERS = [field.name for field in SCHEMA if pa.types.is_primitive(field.type)]  # what limits and ranks can be of


class FilteredRows:
    """Which rows have passed the filters so far, and why the others have not.

    Attributes:
        inside: (N,) bool, the rows that have passed.
        reason, detail: (N,) objects, "" where the row is inside.
        score: (N,) float64, the rank's score in 0 to 1; NaN for rows that did not pass the limits.
        outside: by measure, how many faultless rows lie below, above or have none, whatever dropped them first.
        like: (N,) int64, the better row that a near-duplicate is like; -1 for all others.
        crowded: rows that were not compared with all candidates for near-duplicates.
    """

    def __init__(self, rows: int) -> None:
        self.inside = np.ones(rows, bool)
        self.reason = np.full(rows, "", object)
        self.detail = np.full(rows, "", object)
        self.score = np.full(rows, np.nan)
        self.outside: dict[str, dict[str, int]] = {}
        self.like = np.full(rows, -1)
        self.crowded = 0

    def drop(self, rows: np.ndarray, reason: Any, detail: Any) -> None:
        """Drop ``rows`` (numbers), all of them inside so far; ``reason`` and ``detail`` are one or one each."""
        self.inside[rows] = False
        self.reason[rows] = reason
        self.detail[rows] = detail


def apply_filters(table: pa.Table, config: Selection) -> FilteredRows:
    """Apply all filters to ``table``: faults, limits, near-duplicates, the best of each label, the best of all.

    Raises:
        UserError: ``config`` names a column that does not hold numbers.
    """
    for key, names in (("limits", config.limits), ("rank", config.rank)):
        for name in names:
            _check_name(key, name)
    filtered = FilteredRows(table.num_rows)
    reasons = table["reason"].to_numpy()
    faulty = np.flatnonzero(reasons != "")
    filtered.drop(faulty, reasons[faulty], table["detail"].to_numpy()[faulty])
    faultless = filtered.inside.copy()
    for name, limits in config.limits.items():
        _apply_limits(filtered, faultless, name, limits, numbers(table, name))
    order = _rank(filtered, table, config)
    if config.near_duplicate_bits is not None:
        order = _drop_duplicates(filtered, table, order, config.near_duplicate_bits)
    if config.top_per_label:
        order = _keep_top_per_label(filtered, table, order, config.top_per_label)
    if config.top:
        filtered.drop(order[config.top :], "below_top", f"not among the best {config.top}")
    return filtered


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """Return a column as (N,) float64, null as NaN."""
    return table[name].cast(pa.float64()).to_numpy()


def _check_name(key: str, name: str) -> None:
    if name not in NUMBERS:
        close = difflib.get_close_matches(name, NUMBERS, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UserError(f"{key}.{name}: no measure; {hint}must be one of {', '.join(NUMBERS)}")


def _apply_limits(filtered: FilteredRows, faultless: np.ndarray, name: str, limits: Limits, values: np.ndarray) -> None:
    least = -np.inf if limits.min is None else limits.min
    most = np.inf if limits.max is None else limits.max
    kinds = {
        "low": (values < least, f"{{:g}}, below {least:g}"),
        "high": (values > most, f"{{:g}}, above {most:g}"),
        "no": (np.isnan(values), "it could not be measured"),
    }
    filtered.outside[name] = {kind: int((faultless & where).sum()) for kind, (where, _) in kinds.items()}
    for kind, (where, text) in kinds.items():
        rows = np.flatnonzero(filtered.inside & where)
        filtered.drop(rows, f"{kind}_{name}", [text.format(value) for value in values[rows].tolist()])


def _rank(filtered: FilteredRows, table: pa.Table, config: Selection) -> np.ndarray:
    """Score the rows that are inside and return their numbers, the best first."""
    rows = np.flatnonzero(filtered.inside)
    inside = table.select(["path", "start", *(name for name in config.rank if name != "start")]).take(rows)
    if config.rank:
        filtered.score[rows] = scores({name: numbers(inside, name) for name in config.rank}, config.rank)
    else:
        filtered.score[rows] = 0.0
    starts = inside["start"].to_pylist()
    names = [f"{path}@{start!r}" for path, start in zip(inside["path"].to_pylist(), starts, strict=True)]
    return rows[np.lexsort((stable_hashes(names, config.seed), -filtered.score[rows]))]


def _drop_duplicates(filtered: FilteredRows, table: pa.Table, order: np.ndarray, bits: int) -> np.ndarray:
    """Drop the near-duplicates of better rows; return what is left of ``order``."""
    hashes = table["hash"].take(order).combine_chunks()
    hashed = order[hashes.is_valid().to_numpy(zero_copy_only=False)]
    content = b"".join(hashes.drop_null().to_pylist())
    duplicates = find_duplicates(np.frombuffer(content, np.uint8).reshape(-1, BYTES), bits)
    filtered.crowded = duplicates.crowded
    worse = np.flatnonzero(duplicates.of >= 0)
    better = table.select(["path", "start"]).take(hashed[duplicates.of[worse]]).to_pylist()
    details = [f"like {row['path']} from {row['start']:g} s on" for row in better]
    filtered.drop(hashed[worse], "near_duplicate", details)
    filtered.like[hashed[worse]] = hashed[duplicates.of[worse]]
    return order[filtered.inside[order]]


def _keep_top_per_label(filtered: FilteredRows, table: pa.Table, order: np.ndarray, top: int) -> np.ndarray:
    """Drop the rows that are not among the best ``top`` of any of their labels; return what is left of ``order``."""
    labels = table["labels"].take(order).combine_chunks()
    bare = np.flatnonzero(pc.list_value_length(labels).to_numpy() == 0)  # without labels: a kind of its own
    coded = pc.list_flatten(labels).dictionary_encode()
    codes = np.concatenate([coded.indices.to_numpy(), np.full(len(bare), -1)])
    rows = np.concatenate([pc.list_parent_indices(labels).to_numpy(), bare])
    places = places_within(codes, rows, len(order), np.arange(len(order)))
    filtered.drop(order[places >= top], "below_top_of_label", f"not among the best {top} of any of its labels")
    return order[filtered.inside[order]]
