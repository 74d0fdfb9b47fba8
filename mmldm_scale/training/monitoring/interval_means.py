"""Means of the logged values over all samples since the last record, without waiting for the device in a step.

    interval = IntervalMeans(world)
    interval.add(values)  # after each step that was taken; values by tag, a list of micro-batches' values each
    means = interval.take()  # at a record, on all ranks together: the means, after which a new interval begins

A checkpoint holds the sums (it is one of its states), each process's by itself: so a run that was saved between two
records and resumes logs, bit for bit, what it would have logged without that.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.monitoring import metric_means

StepValues = Mapping[str, Sequence[Tensor]]  # by tag: what each micro-batch of a step returned, (B,) or (B, 2)


class IntervalMeans:
    """The sums and counts of the values of an interval; all ranks add the values of the same steps."""

    def __init__(self, world: World) -> None:
        self._world = world
        # By the tags of a step, since discriminator and probes take part in some steps only: (tags, 2) on the device.
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def add(self, values: StepValues) -> None:
        """Add the values of a step; this does not wait for the device."""
        tags = tuple(sorted(values))
        sums = metric_means.step_sums([values[tag] for tag in tags])
        before = self._sums.get(tags)
        self._sums[tags] = sums if before is None else before + sums

    def take(self) -> dict[str, float]:
        """Return the means over the interval, by tag, and begin a new one; all ranks call this together."""
        sums, self._sums = self._sums, {}
        return _reduced(sums, self._world)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of all ranks, as JSON values; all ranks call this together."""
        rows = self._world.gather([sums.tolist() for sums in self._sums.values()])
        return {"tags": [list(tags) for tags in self._sums], "sums": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the sums back; raise TypeError or ValueError if ``state`` has none.

        If another number of processes saved it, the first rank takes the sums of all.
        """
        tags, rows = [tuple(map(str, names)) for names in state.get("tags", [None])], state.get("sums", [None])
        # (tags, 2) of each set of tags, of each rank
        parts = [[torch.tensor(sums, dtype=torch.float64) for sums in row] for row in rows]
        if any([(len(names), 2) for names in tags] != [tuple(part.shape) for part in row] for row in parts):
            raise ValueError("the sums do not match the tags")
        world = self._world
        if len(parts) == world.size:
            own = parts[world.rank]
        else:
            total = [torch.stack(part).sum(dim=0) for part in zip(*parts, strict=True)]
            own = total if world.is_rank0 else [torch.zeros_like(part) for part in total]
        self._sums = {names: part.to(world.device) for names, part in zip(tags, own, strict=True)}


def step_means(values: StepValues, world: World) -> dict[str, float]:
    """Return the means of one step's ``values``, by tag; all ranks call this together."""
    alone = IntervalMeans(world)
    alone.add(values)
    return alone.take()


def _reduced(sums: Mapping[tuple[str, ...], Tensor], world: World) -> dict[str, float]:
    """Return the means over all ranks of ``sums``, (tags, 2) by their tags; a tag may be in several of them."""
    names = [tag for tags in sums for tag in tags]
    if not names:
        return {}
    totals = iter(world.sum(torch.cat([*sums.values()]).flatten().tolist()))
    merged: dict[str, tuple[float, float]] = {}
    for name in names:
        before = merged.get(name, (0.0, 0.0))
        merged[name] = (before[0] + next(totals), before[1] + next(totals))
    return metric_means.means([*merged], [value for pair in merged.values() for value in pair])
