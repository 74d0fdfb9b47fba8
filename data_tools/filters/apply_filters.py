"""What of the table of measures stays in a selection, step by step, and the reason why each other row does not."""

import difflib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmldm_scale.common.errors import UserError

from ..config import Limits, Selection
from .duplicates import find_duplicates
from .ranking import chances, places_within, scores
from .stable_hash import BYTES
from .table import SCHEMA

NUMBERS = [field.name for field in SCHEMA if pa.types.is_primitive(field.type)]  # what limits and ranks can be of


class Sieve:
    """Which rows are still in, and why the others are not.

    Attributes:
        inside: (N,) bool.
        reason, detail: (N,) objects, "" where the row is inside.
        score: (N,) float64, the rank's score in 0 to 1; NaN for rows that did not pass the limits.
        outside: by measure, how many faultless rows lie below, above or have none, whatever dropped them first.
        crowded: rows whose near-duplicates were not all looked for.
    """

    def __init__(self, rows: int) -> None:
        self.inside = np.ones(rows, bool)
        self.reason = np.full(rows, "", object)
        self.detail = np.full(rows, "", object)
        self.score = np.full(rows, np.nan)
        self.outside: dict[str, dict[str, int]] = {}
        self.crowded = 0

    def drop(self, rows: np.ndarray, reason: Any, detail: Any) -> None:
        """Drop ``rows`` (numbers), all of them inside so far; ``reason`` and ``detail`` are one or one each."""
        self.inside[rows] = False
        self.reason[rows] = reason
        self.detail[rows] = detail


def sift(table: pa.Table, config: Selection) -> Sieve:
    """Take ``table`` through all steps: faults, limits, near-duplicates, the best of each label, the best of all.

    Raises:
        UserError: ``config`` names a column that is no number.
    """
    for key, names in (("limits", config.limits), ("rank", config.rank)):
        for name in names:
            _check_name(key, name)
    sieve = Sieve(table.num_rows)
    reasons = table["reason"].to_numpy()
    faulty = np.flatnonzero(reasons != "")
    sieve.drop(faulty, reasons[faulty], table["detail"].to_numpy()[faulty])
    faultless = sieve.inside.copy()
    for name, limits in config.limits.items():
        _apply_limits(sieve, faultless, name, limits, numbers(table, name))
    order = _rank(sieve, table, config)
    if config.near_duplicate_bits is not None:
        order = _drop_duplicates(sieve, table, order, config.near_duplicate_bits)
    if config.top_per_label:
        order = _keep_top_per_label(sieve, table, order, config.top_per_label)
    if config.top:
        sieve.drop(order[config.top :], "below_top", f"not among the best {config.top}")
    return sieve


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """Return a column as (N,) float64, null as NaN."""
    return table[name].cast(pa.float64()).to_numpy()


def _check_name(key: str, name: str) -> None:
    if name not in NUMBERS:
        close = difflib.get_close_matches(name, NUMBERS, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UserError(f"{key}.{name}: no measure; {hint}there are: {', '.join(NUMBERS)}")


def _apply_limits(sieve: Sieve, faultless: np.ndarray, name: str, limits: Limits, values: np.ndarray) -> None:
    least = -np.inf if limits.min is None else limits.min
    most = np.inf if limits.max is None else limits.max
    kinds = {
        "low": (values < least, f"{{:g}}, below {least:g}"),
        "high": (values > most, f"{{:g}}, above {most:g}"),
        "no": (np.isnan(values), "it could not be measured"),
    }
    sieve.outside[name] = {kind: int((faultless & where).sum()) for kind, (where, _) in kinds.items()}
    for kind, (where, text) in kinds.items():
        rows = np.flatnonzero(sieve.inside & where)
        sieve.drop(rows, f"{kind}_{name}", [text.format(value) for value in values[rows].tolist()])


def _rank(sieve: Sieve, table: pa.Table, config: Selection) -> np.ndarray:
    """Score the rows that are inside and return their numbers, the best first."""
    rows = np.flatnonzero(sieve.inside)
    inside = table.select(["path", "start", *(name for name in config.rank if name != "start")]).take(rows)
    if config.rank:
        sieve.score[rows] = scores({name: numbers(inside, name) for name in config.rank}, config.rank)
    else:
        sieve.score[rows] = 0.0
    starts = inside["start"].to_pylist()
    names = [f"{path}@{start!r}" for path, start in zip(inside["path"].to_pylist(), starts, strict=True)]
    return rows[np.lexsort((chances(names, config.seed), -sieve.score[rows]))]


def _drop_duplicates(sieve: Sieve, table: pa.Table, order: np.ndarray, bits: int) -> np.ndarray:
    """Drop the near-duplicates of better rows; return what is left of ``order``."""
    hashes = table["hash"].take(order).combine_chunks()
    hashed = order[hashes.is_valid().to_numpy(zero_copy_only=False)]
    content = b"".join(hashes.drop_null().to_pylist())
    found = find_duplicates(np.frombuffer(content, np.uint8).reshape(-1, BYTES), bits)
    sieve.crowded = found.crowded
    worse = np.flatnonzero(found.of >= 0)
    kept = table.select(["path", "start"]).take(hashed[found.of[worse]]).to_pylist()
    details = [f"like {row['path']} from {row['start']:g} s on" for row in kept]
    sieve.drop(hashed[worse], "near_duplicate", details)
    return order[sieve.inside[order]]


def _keep_top_per_label(sieve: Sieve, table: pa.Table, order: np.ndarray, top: int) -> np.ndarray:
    """Drop the rows that are not among the best ``top`` of any of their labels; return what is left of ``order``."""
    labels = table["labels"].take(order).combine_chunks()
    bare = np.flatnonzero(pc.list_value_length(labels).to_numpy() == 0)  # without labels: a kind of its own
    coded = pc.list_flatten(labels).dictionary_encode()
    codes = np.concatenate([coded.indices.to_numpy(), np.full(len(bare), -1)])
    rows = np.concatenate([pc.list_parent_indices(labels).to_numpy(), bare])
    places = places_within(codes, rows, len(order), np.arange(len(order)))
    sieve.drop(order[places >= top], "below_top_of_label", f"not among the best {top} of any of its labels")
    return order[sieve.inside[order]]
