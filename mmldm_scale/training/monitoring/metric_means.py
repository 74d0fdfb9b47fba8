"""Means of per-sample values over a global batch, or over some of its samples.

    totals = world.sum(torch.stack([sums(values[tag]) for tag in tags]).flatten().tolist())
    by_tag = means(tags, totals)

A module's value is (B,), one for each sample; or it is (B, 2), made by :func:`where`: the sum of a sample's values, and
how many they are. The mean is then over those values on all processes, and is left out if there are none.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

BUCKETS = 4  # of timesteps; with more, a loss would be the mean of too few samples of a global batch


def where(counts: Tensor, values: Tensor) -> Tensor:
    """Return, as (B, 2), each sample's value if it ``counts`` (else 0), and 1 if it counts (else 0).

    A value that is not finite thus affects only the means in which it counts. Where each sample has K values, both
    arguments are (B, K), and the sums over K are returned.
    """
    pairs = torch.stack([torch.where(counts, values, 0), counts.to(values.dtype)], dim=-1)  # (B, 2) or (B, K, 2)
    return pairs if values.ndim == 1 else pairs.sum(dim=1)


def by_time(losses: dict[str, Tensor], time: Tensor, steps: int) -> dict[str, Tensor]:
    """Return each "loss/NAME" of ``losses`` separately for each quarter of the schedule of ``steps`` timesteps.

    Losses and their ``time`` are (B,), or (B, K) where each sample has several. The tags of 1,000 ``steps`` are
    "loss_by_time/NAME/0-249" and so on.
    """
    edges = [number * steps // BUCKETS for number in range(BUCKETS + 1)]
    by_bucket = {}
    for first, end in pairwise(edges):
        counts = (time >= first) & (time < end)
        for name in [name.removeprefix("loss/") for name in losses if name.startswith("loss/")]:
            by_bucket[f"loss_by_time/{name}/{first}-{end - 1}"] = where(counts, losses[f"loss/{name}"])
    return by_bucket


def sums(values: Sequence[Tensor]) -> Tensor:
    """Return the sum of ``values``, each (B,) or (B, 2), and the number of values that count, as (2,) float64."""
    pairs = [torch.stack([value, torch.ones_like(value)], dim=1) if value.ndim == 1 else value for value in values]
    return torch.stack([pair.double().sum(dim=0) for pair in pairs]).sum(dim=0)


def step_sums(values: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return :func:`sums` of each of ``values``, stacked to (values, 2), with few operations on the device.

    All of ``values`` are of the same micro-batches.
    """
    single = [number for number, parts in enumerate(values) if parts[0].ndim == 1]
    double = [number for number, parts in enumerate(values) if parts[0].ndim == 2]
    totals: dict[int, Tensor] = {}
    if single:
        stacked = torch.stack([torch.cat([*values[number]]) for number in single]).double()  # (n, samples)
        pairs = torch.stack([stacked.sum(dim=1), torch.full_like(stacked[:, 0], stacked.shape[1])], dim=1)
        totals |= dict(zip(single, pairs, strict=True))
    if double:
        stacked = torch.stack([torch.cat([*values[number]]) for number in double]).double()  # (n, samples, 2)
        totals |= dict(zip(double, stacked.sum(dim=1), strict=True))
    return torch.stack([totals[number] for number in range(len(values))])


def means(names: Sequence[str], totals: Sequence[float]) -> dict[str, float]:
    """Return the means by name; ``totals`` are the :func:`sums` of each name in turn, added over all processes."""
    pairs = zip(names, totals[::2], totals[1::2], strict=True)
    return {name: total / count for name, total, count in pairs if count}
