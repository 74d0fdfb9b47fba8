"""The contract of a distance: how a figure is computed from feature vectors of samples and of reference clips.

A distance states, as class attributes:

- ``direction``: "higher" or "lower", whichever is better;
- ``compares``: "sets", if samples and reference clips are two distributions; "pairs", if each sample is compared with
  the reference clip of its name; "nothing", if the reference does not count;
- ``lowest``: below which it cannot be, and so no interval is;
- ``copies_count``: whether copies of clips, which resampled sets have, shift it, as they do Fréchet's distance;
- ``floor``: in words, what its figure of the reference itself is (see ``bootstrap.py``);
- ``note``: in a sentence, what a reader of the figure has to know; "" for nothing.

Its options are keyword arguments of ``__init__``, with defaults; they are keys of a protocol's metrics.

Everything is computed in float64, whatever the features are.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import numpy as np

from mmldm_scale.evaluation.metrics.metric import Direction

# A figure of some of the rows of both sets: (rows of the samples, rows of the reference), (n,) and (m,) int64.
Estimate = Callable[[np.ndarray, np.ndarray], float]


class Distance(ABC):
    """A distance; the module's text is its contract."""

    direction: Direction
    compares: Literal["sets", "pairs", "nothing"]
    lowest: float = -math.inf
    copies_count: bool = True
    floor: str
    note: str = ""

    @abstractmethod
    def estimate(self, samples: np.ndarray, reference: np.ndarray) -> Estimate:
        """Return the function that computes the figure of given rows; what is the same for all rows is computed here.

        Args:
            samples: (N, D).
            reference: (M, D); with ``compares`` "pairs", row i belongs to row i of ``samples``.
        """

    def value(self, samples: np.ndarray, reference: np.ndarray) -> float:
        """Return the figure of all rows; the arguments are those of :meth:`estimate`."""
        return self.estimate(samples, reference)(np.arange(len(samples)), np.arange(len(reference)))

    def by_clip(self, samples: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
        """Return each sample's own value, (N,) float64, NaN where it has none; None for a figure of the whole set."""
        return None
