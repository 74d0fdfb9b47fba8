"""Means over a global batch of per-sample values, some of which concern only some of its samples.

A module's value is (B,): one for each sample. Or it is (B, 2), made by :func:`where`: a sample's value beside whether
it counts, or the sum of its values beside how many count. Then the mean is over those that count, on whichever process
they are, and there is none if none does.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

BUCKETS = 4  # of timesteps: a loss over more of them would be the mean of a few samples of a global batch


def where(counts: Tensor, values: Tensor) -> Tensor:
    """Return the per-sample ``values`` (B,) with whether each ``counts`` (B,), as (B, 2).

    What does not count is 0, so that one that is not finite spoils no mean but those in which it counts. Of several
    values of a sample, (B, K) both, the sum is returned with how many count.
    """
    pairs = torch.stack([torch.where(counts, values, 0), counts.to(values.dtype)], dim=-1)  # (B, 2) or (B, K, 2)
    return pairs if values.ndim == 1 else pairs.sum(dim=1)


def by_time(losses: dict[str, Tensor], time: Tensor, steps: int) -> dict[str, Tensor]:
    """Return the "loss/NAME" of ``losses`` by quarter of the schedule that their ``time`` lies in.

    Both are (B,), or (B, K) where each sample has several. They are named "loss_by_time/NAME/0-249" and so on for
    1,000 ``steps``.
    """
    edges = [number * steps // BUCKETS for number in range(BUCKETS + 1)]
    found = {}
    for first, end in pairwise(edges):
        counts = (time >= first) & (time < end)
        for name in [name.removeprefix("loss/") for name in losses if name.startswith("loss/")]:
            found[f"loss_by_time/{name}/{first}-{end - 1}"] = where(counts, losses[f"loss/{name}"])
    return found


def sums(values: Sequence[Tensor]) -> Tensor:
    """Return the sum of ``values``, each (B,) or (B, 2), and of how many samples, as (2,) in float64."""
    pairs = [torch.stack([value, torch.ones_like(value)], dim=1) if value.ndim == 1 else value for value in values]
    return torch.stack([pair.double().sum(dim=0) for pair in pairs]).sum(dim=0)


def means(names: Sequence[str], totals: Sequence[float]) -> dict[str, float]:
    """Return the means by name, of the ``sums`` of each one after another over all processes; none of no samples."""
    pairs = zip(names, totals[::2], totals[1::2], strict=True)
    return {name: total / count for name, total, count in pairs if count}
