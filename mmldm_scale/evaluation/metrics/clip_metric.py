"""Base class of metrics whose value is the mean of one number for each clip; a subclass computes those numbers."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from mmldm_scale.evaluation.metrics.metric import Metric, MetricBatch, MetricState, Reference


class ClipMetric(Metric):
    """A mean over clips. Its state is each clip's index, (n,) int64, and value, (n,) float64, in order of the index."""

    reference: Reference = "paired"

    @abstractmethod
    def clip_values(self, batch: MetricBatch) -> Tensor:
        """Return the value of each clip of ``batch``, (B,)."""

    def measure(self, batch: MetricBatch) -> MetricState:
        values = self.clip_values(batch).double().cpu().numpy()
        if values.shape != (len(batch.indices),):
            raise ValueError(f"{self.name}: clip_values returned shape {values.shape} for {len(batch.indices)} clips")
        return self.merge([{"index": np.asarray(batch.indices, np.int64), "value": values}])

    def merge(self, states: Sequence[MetricState]) -> MetricState:
        """Return the "index" and "value", (N,) each, of all clips of ``states``, by index.

        Raises:
            ValueError: a clip is in more than one of them.
        """
        index = np.concatenate([state["index"] for state in states])
        value = np.concatenate([state["value"] for state in states])
        order = np.argsort(index)
        index, value = index[order], value[order]
        repeated = index[1:][index[1:] == index[:-1]]
        if len(repeated):
            raise ValueError(f"{self.name}: clip {repeated[0]} is measured twice")
        return {"index": index, "value": value}

    def value(self, state: MetricState) -> float:
        return sum(state["value"].tolist()) / len(state["value"])  # term after term: NumPy's order depends on n

    def by_clip(self, state: MetricState) -> dict[int, float]:
        return dict(zip(state["index"].tolist(), state["value"].tolist(), strict=True))
