"""Fréchet distance between two sets of feature vectors (FVD, FAD, FID), each taken as a Gaussian.

    |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁ Σ₂)^½

The last term is computed without a matrix square root. With centred features X, of which Σ = XᵀX / (N − 1), it is the
sum of the singular values of X₁X₂ᵀ / √((N₁ − 1)(N₂ − 1)). These are real and not negative, also where there are fewer
clips than dimensions and Σ is singular. (Square roots of eigenvalues that are 0 but for rounding lose half of the
digits.)

The distance of finite sets is too large, by an amount that is proportional to 1/N for large N: also two sets of one
distribution have a positive distance, and sets of half as many clips about twice that. Compare only figures of equal
counts.
"""

from typing import Literal

import numpy as np

from mmldm_scale.evaluation.distances.distance import Distance, Estimate

Covariance = Literal["unbiased", "biased"]  # divided by N − 1, or by N


def frechet_distance(samples: np.ndarray, reference: np.ndarray, covariance: Covariance = "unbiased") -> float:
    """Return the Fréchet distance of ``samples`` (N, D) and ``reference`` (M, D), at least 0.

    Raises:
        ValueError: the shapes do not fit, or a set has fewer than two rows.
    """
    if samples.ndim != 2 or reference.ndim != 2 or samples.shape[1] != reference.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), not {samples.shape} and {reference.shape}")
    (mean, factor), (other_mean, other_factor) = _moments(samples, covariance), _moments(reference, covariance)
    shared = np.linalg.svd(factor @ other_factor.T, compute_uv=False).sum()
    distance = np.sum((mean - other_mean) ** 2) + np.sum(factor**2) + np.sum(other_factor**2) - 2 * shared
    return max(float(distance), 0.0)  # rounding


def _moments(features: np.ndarray, covariance: Covariance) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (D,) and a factor F of the covariance, Σ = FᵀF, of min(N, D) rows."""
    count, dimension = features.shape
    if count < 2:
        raise ValueError(f"a covariance needs at least 2 rows, not {count}")
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    centred = (features - mean) / np.sqrt(count - 1 if covariance == "unbiased" else count)
    return mean, np.asarray(np.linalg.qr(centred, mode="r")) if count > dimension else centred


class Frechet(Distance):
    """Fréchet distance of the two sets."""

    direction = "lower"
    compares = "sets"
    lowest = 0.0
    floor = "one half of the reference against the other"
    note = "Fréchet distances fall with the number of clips: compare only figures of equal counts."

    def __init__(self, covariance: Covariance = "unbiased") -> None:
        self.covariance: Covariance = covariance

    def estimate(self, samples: np.ndarray, reference: np.ndarray) -> Estimate:
        return lambda rows, others: frechet_distance(samples[rows], reference[others], self.covariance)


class FrechetOfEach(Distance):
    """Mean over samples of the Fréchet distance of each sample alone, a set of one vector, from the reference set.

    The covariance of one vector is 0, so that a sample's distance is |x − μ|² + tr Σ.
    """

    direction = "lower"
    compares = "sets"
    lowest = 0.0
    floor = "clips of one half of the reference, each against the other half"

    def __init__(self, covariance: Covariance = "unbiased") -> None:
        self.covariance: Covariance = covariance

    def estimate(self, samples: np.ndarray, reference: np.ndarray) -> Estimate:
        return lambda rows, others: float(self._distances(samples[rows], reference[others]).mean())

    def by_clip(self, samples: np.ndarray, reference: np.ndarray) -> np.ndarray:
        return self._distances(samples, reference)

    def _distances(self, samples: np.ndarray, reference: np.ndarray) -> np.ndarray:
        reference = reference.astype(np.float64)
        variance = reference.var(axis=0, ddof=1 if self.covariance == "unbiased" else 0).sum()
        distances: np.ndarray = ((samples.astype(np.float64) - reference.mean(axis=0)) ** 2).sum(axis=1) + variance
        return distances
