"""The mean over clips of one number each, where that number is the feature: agreement of sound and picture, offsets."""

import numpy as np

from mmldm_scale.evaluation.distances.distance import Distance, Estimate
from mmldm_scale.evaluation.metrics.metric import Direction


class ClipMean(Distance):
    """Mean of one column of the features; clips without a value, NaN, do not count.

    Args:
        column: which of the features, from 0.
        better: which direction is better.
    """

    compares = "nothing"
    copies_count = False
    floor = "the mean over a half of the reference"

    def __init__(self, column: int = 0, better: Direction = "higher") -> None:
        self.column, self.direction = column, better

    def estimate(self, samples: np.ndarray, reference: np.ndarray) -> Estimate:
        values = self.by_clip(samples, reference)

        def mean(rows: np.ndarray, others: np.ndarray) -> float:
            drawn = values[rows]
            present = drawn[~np.isnan(drawn)]
            return float(present.mean()) if len(present) else float("nan")

        return mean

    def by_clip(self, samples: np.ndarray, reference: np.ndarray) -> np.ndarray:
        return samples[:, self.column].astype(np.float64)
