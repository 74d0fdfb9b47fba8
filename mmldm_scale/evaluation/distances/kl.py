"""Kullback-Leibler divergence of a classifier's predictions of each sample from those of the real clip of its name.

From logits, as audioldm_eval computes it, with its 1e-6 inside the logarithm:

- :class:`SoftmaxKL`: Σ p log (p / q) of softmax probabilities, p of the real clip; AudioGen's "KL";
- :class:`SigmoidKL`: the same of sigmoid probabilities, which do not add up to 1; for clips of several classes.
"""

from abc import abstractmethod

import numpy as np

from mmldm_scale.evaluation.distances.distance import Distance, Estimate
from mmldm_scale.evaluation.distances.inception_score import log_softmax

EPSILON = 1e-6  # added to the sample's probabilities, as in audioldm_eval


class _KL(Distance):
    """Mean divergence over pairs."""

    direction = "lower"
    compares = "pairs"
    copies_count = False
    floor = "pairs of different clips of the reference: what samples without any relation to their input reach"

    def estimate(self, samples: np.ndarray, reference: np.ndarray) -> Estimate:
        return lambda rows, others: float(self.by_clip(samples[rows], reference[others]).mean())

    def by_clip(self, samples: np.ndarray, reference: np.ndarray) -> np.ndarray:
        p, q = self._probabilities(reference), self._probabilities(samples)
        terms = np.where(p > 0, p * (np.log(np.maximum(p, np.finfo(np.float64).tiny)) - np.log(q + EPSILON)), 0.0)
        divergences: np.ndarray = terms.sum(axis=1)
        return divergences

    @abstractmethod
    def _probabilities(self, logits: np.ndarray) -> np.ndarray: ...


class SoftmaxKL(_KL):
    """KL of softmax probabilities; needs logits."""

    def _probabilities(self, logits: np.ndarray) -> np.ndarray:
        return np.exp(log_softmax(logits))


class SigmoidKL(_KL):
    """KL of sigmoid probabilities; needs logits."""

    def _probabilities(self, logits: np.ndarray) -> np.ndarray:
        probabilities: np.ndarray = 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))
        return probabilities
