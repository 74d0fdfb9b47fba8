"""The figures of a protocol from the features of samples and reference."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.distances import DISTANCES
from mmldm_scale.evaluation.distances.bootstrap import floor, interval
from mmldm_scale.evaluation.distances.distance import Distance
from mmldm_scale.evaluation.extractors.extractor import Extractor
from mmldm_scale.evaluation.protocols.protocol import MetricConfig, Protocol

OPTIONS = {  # keys of a metric that are options of its distance
    "frechet": ("covariance",),
    "frechet_of_each": ("covariance",),
    "inception_score": ("splits",),
    "mean": ("column", "better"),
}


@dataclass(frozen=True)
class Figure:
    """A figure with what has to stand beside it.

    Attributes:
        key: of the metric in the protocol.
        title: how reports write it.
        direction: which is better.
        value: of all clips; NaN if no clip has a value.
        low, high: the bootstrap interval.
        floor: the figure of the reference itself, of halves.
        floor_samples: the figure of as many samples, against a half of the reference.
        floor_clips: clips of a half.
        floor_text: in words, what the floor compares.
        note: what a reader has to know; "" for nothing.
        by_clip: each sample's own value; None for a figure of the set.
        by_reference_clip: likewise, of the reference.
    """

    key: str
    title: str
    direction: str
    value: float
    low: float
    high: float
    floor: float
    floor_samples: float
    floor_clips: int
    floor_text: str
    note: str
    by_clip: list[float] | None
    by_reference_clip: list[float] | None


def build_distance(metric: MetricConfig) -> Distance:
    """Return the distance of ``metric`` with its options."""
    options: dict[str, Any] = {name: getattr(metric, name) for name in OPTIONS.get(metric.distance, ())}
    return DISTANCES[metric.distance](**options)


def check_outputs(key: str, metric: MetricConfig, extractor: Extractor) -> None:
    """Raise UserError if ``extractor``, which is loaded, does not give what the distance of ``metric`` needs."""
    logits = extractor.classes > 0 and extractor.dimension == extractor.classes
    if metric.distance in ("inception_score", "kl_softmax", "kl_sigmoid") and not logits:
        raise UserError(f"metrics.{key}: {metric.distance} needs logits, which {metric.extractor} does not give so")
    if metric.distance == "mean" and metric.column >= extractor.dimension:
        allowed = f"0..{extractor.dimension - 1}"
        raise UserError(f"metrics.{key}.column: {metric.column}: {metric.extractor} has columns {allowed}")


def compute(
    key: str, protocol: Protocol, samples: np.ndarray, reference: np.ndarray, names: Mapping[str, Sequence[str]]
) -> Figure:
    """Return the figure ``key`` of ``protocol`` from the features of ``samples`` (N, D) and ``reference`` (M, D).

    Args:
        names: the clips' names, "samples" (N) and "reference" (M).

    Raises:
        UserError: a feature is not a number, and the distance has no use for that.
    """
    metric = protocol.metrics[key]
    distance = build_distance(metric)
    if metric.distance != "mean":
        _check_numbers(key, samples, names["samples"])
        _check_numbers(key, reference, names["reference"])
    own = distance.by_clip(samples, reference)
    real = distance.by_clip(reference, reference) if own is not None and distance.compares != "pairs" else None
    value = distance.value(samples, reference)
    limits = interval(distance, samples, reference, key, protocol.seed, protocol.resamples, protocol.level)
    least = floor(distance, samples, reference, key, protocol.seed, protocol.floor_repeats)
    scale = metric.scale
    return Figure(
        key=key,
        title=metric.title or key,
        direction=distance.direction,
        value=value * scale,
        low=limits.low * scale,
        high=limits.high * scale,
        floor=least.value * scale,
        floor_samples=least.samples * scale,
        floor_clips=least.clips,
        floor_text=distance.floor,
        note=distance.note,
        by_clip=None if own is None else (own * scale).tolist(),
        by_reference_clip=None if real is None else (real * scale).tolist(),
    )


def copies(features: np.ndarray) -> list[tuple[int, int]]:
    """Return each row of ``features`` (N, D) that is as an earlier one: (number of the first such, its own number)."""
    features = np.nan_to_num(features, nan=np.inf)  # numbers that a clip does not have are alike, too
    _, first, kinds = np.unique(features, axis=0, return_index=True, return_inverse=True)
    return [(int(first[kind]), row) for row, kind in enumerate(kinds.reshape(-1)) if first[kind] != row]


def number(value: float) -> float | None:
    """Return ``value`` for JSON, which has no NaN."""
    return value if math.isfinite(value) else None


def _check_numbers(key: str, features: np.ndarray, names: Sequence[str]) -> None:
    wrong = np.isnan(features).any(axis=1)
    if wrong.any():
        raise UserError(f"metrics.{key}: clip {names[int(wrong.argmax())]}: its features are not numbers")
