"""The contract of a metric: what a class must state and compute so that every evaluating command can use it.

A metric states, as class attributes:

- ``name``: its key in results, in snake case;
- ``unit``: "dB", "ms", … or "" for a number without unit;
- ``direction``: "higher" or "lower", whichever is better;
- ``needs``: the signals that it reads, from the table below;
- ``reference``: "none"; "paired", if the clip that each sample is compared with is in the same batch; or "set", if the
  reference is a distribution, so that a batch holds samples, reference clips, or both;
- ``weights``: the settings that hold the paths of its pretrained weights. Weights are never downloaded.

===================  ==============================================================
signal               tensor, float32
===================  ==============================================================
``frames``           (B, F, 3, S, S) in [-1, 1]
``audio_image``      (B, 3, S, S) in [-1, 1]
``waveform``         (B, N) in [-1, 1] at the sample rate of ``context.media.audio``
``features/NAME``    (B, D), the output of the feature extractor NAME
===================  ==============================================================

and computes in three steps. A metric keeps nothing between calls, so that one network serves any number of results:

1. :meth:`Metric.measure` turns a batch into a :data:`MetricState`, a dictionary of arrays. It is called once for each
   batch of a stream. A clip's contribution must not depend on the other clips of its batch.
2. :meth:`Metric.merge` joins states of disjoint sets of clips into one, batch after batch in a job and then over jobs.
   Jobs exchange states as files of arrays.
3. :meth:`Metric.value` returns the number that a state amounts to.

Merging is exact: 1, 2 or 7 jobs, in any order, give the same digits. A sum of floating-point numbers depends on the
order of its terms, even in float64. So keep each clip's term with the clip's index and add them in that order in
:meth:`Metric.value`, as :class:`~mmldm_scale.evaluation.metrics.clip_metric.ClipMetric` does; or add only what float64
or int64 represents without rounding. Accumulate in float64 or int64, not in the float32 of the signals.

A metric whose value is the mean of one number for each clip subclasses ``ClipMetric``. Any metric with options takes
them as keyword arguments after ``context``, with defaults.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from mmldm_scale.config import MediaConfig

Direction = Literal["higher", "lower"]
Reference = Literal["none", "paired", "set"]
Signals = Mapping[str, Tensor]  # by the names in the table above
MetricState = dict[str, np.ndarray]


@dataclass(frozen=True)
class MetricContext:
    """What metrics are built from.

    Attributes:
        media: format of the clips, e.g. frame rate, size and sample rate.
        weights: path of each given weights file or folder, by the name of its setting.
    """

    media: MediaConfig
    weights: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricBatch:
    """B clips to measure.

    Attributes:
        indices: B positions of the clips in their set; over a stream, each occurs once in a set.
        samples: signals of the clips under evaluation; empty in a batch of reference clips alone.
        reference: signals of the reference clips; empty in a batch of samples alone.
    """

    indices: Sequence[int]
    samples: Signals = field(default_factory=dict)
    reference: Signals = field(default_factory=dict)


class Metric(ABC):
    """A metric; the module's text is its contract.

    Raises:
        UserError: from ``__init__``, if given weights cannot be loaded or do not fit ``context``.
    """

    name: str
    unit: str
    direction: Direction
    needs: tuple[str, ...]
    reference: Reference
    weights: tuple[str, ...] = ()

    def __init__(self, context: MetricContext) -> None:
        self.context = context

    @abstractmethod
    def measure(self, batch: MetricBatch) -> MetricState:
        """Return the state of ``batch``, computed on the device of its signals."""

    @abstractmethod
    def merge(self, states: Sequence[MetricState]) -> MetricState:
        """Return one state for the clips of all ``states``, of which there is at least one.

        Raises:
            ValueError: a clip is in two of them and the states can tell.
        """

    @abstractmethod
    def value(self, state: MetricState) -> float:
        """Return the metric over all clips of ``state``, in :attr:`unit`."""

    def by_clip(self, state: MetricState) -> dict[int, float]:
        """Return each clip's own value by the clip's index; empty for a metric that has none."""
        return {}


class MetricAccumulator:
    """The running states of several metrics over one stream of batches."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics = metrics
        self.states: dict[str, MetricState] = {}  # by the metric's name; empty before the first batch

    def update(self, batch: MetricBatch) -> dict[str, dict[int, float]]:
        """Measure ``batch``; return its clips' own values by metric and index, of those metrics that have them."""
        states = {metric.name: metric.measure(batch) for metric in self.metrics}
        self.merge(states)
        by_clip = {metric.name: metric.by_clip(states[metric.name]) for metric in self.metrics}
        return {name: values for name, values in by_clip.items() if values}

    def merge(self, states: Mapping[str, MetricState]) -> None:
        """Add the clips of ``states``, those of another accumulator of the same metrics."""
        for metric in self.metrics:
            earlier = [self.states[metric.name]] if metric.name in self.states else []
            self.states[metric.name] = metric.merge([*earlier, states[metric.name]])

    def values(self) -> dict[str, float]:
        """Return each metric's value over all clips so far, of which there must be at least one."""
        return {metric.name: metric.value(self.states[metric.name]) for metric in self.metrics}
