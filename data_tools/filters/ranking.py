"""Scores and pseudo-random numbers of candidates, which depend on the candidate and not on its place in the table."""

from hashlib import blake2b

import numpy as np


def percentiles(values: np.ndarray) -> np.ndarray:
    """Return for each of ``values``, (N,) float, the share of the others below it, equals counted half; NaN gives 0."""
    known = np.sort(values[~np.isnan(values)])
    below, not_above = (np.searchsorted(known, values, side) for side in ("left", "right"))
    share = (below + not_above - 1) / (2 * max(1, len(known) - 1))
    return np.where(np.isnan(values), 0.0, share)


def scores(columns: dict[str, np.ndarray], weights: dict[str, float]) -> np.ndarray:
    """Return the weighted mean of the percentiles, (N,) in 0 to 1; a negative weight ranks the least highest."""
    total = sum(map(abs, weights.values()))
    score = np.zeros(len(next(iter(columns.values()))))
    for name, weight in weights.items():
        share = percentiles(columns[name] if weight > 0 else -columns[name])
        score += abs(weight) / total * share
    return score


def stable_hashes(names: list[str], seed: int) -> np.ndarray:
    """Return a pseudo-random number for each name, a function of the name and ``seed`` alone, (N,) uint64."""
    key = seed.to_bytes(8, "little", signed=True)
    digests = b"".join([blake2b(name.encode(), digest_size=8, key=key).digest() for name in names])
    return np.frombuffer(digests, "<u8")


def places_within(labels: np.ndarray, rows: np.ndarray, count: int, ranks: np.ndarray) -> np.ndarray:
    """Return the best place that each of ``count`` rows has among those that share a label with it, from 0.

    Args:
        labels, rows: (P,) each pair of a label's number and a row; a row is in one pair at least.
        ranks: (count,) of the rows, 0 for the best.
    """
    order = np.lexsort((ranks[rows], labels))
    first = np.searchsorted(labels[order], labels[order], "left")
    places = np.full(count, count)
    np.minimum.at(places, rows[order], np.arange(len(order)) - first)
    return places
