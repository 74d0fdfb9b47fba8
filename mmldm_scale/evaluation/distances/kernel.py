"""Maximum mean discrepancy (MMD) of two sets of feature vectors: KVD and KAD.

    mean k(x, x') over pairs of samples + mean k(y, y') over pairs of reference clips − 2 mean k(x, y)

The pairs of a clip with itself are left out, which makes the estimate unbiased: it does not depend on the number of
clips but for its spread, and may be below 0. Copies of a clip in a resampled set count as that clip.

- :class:`PolynomialMMD`: k(x, y) = (x·y / D + 1)³, as MM-Diffusion's KVD and KID (scikit-learn's polynomial_kernel).
- :class:`GaussianMMD`: k(x, y) = exp(−|x − y|² / 2σ²), with σ the median distance of two reference clips. That is KAD
  (Chung et al. 2025, arXiv 2502.15602). Their program kadtk multiplies by 100 (``SCALE_FACTOR``) and takes the lower
  of two middle distances (torch.median), as we do.
"""

from abc import abstractmethod

import numpy as np

from mmldm_scale.evaluation.distances.distance import Distance, Estimate

BANDWIDTH_FLOOR = 1e-8  # added to 2σ², as in kadtk: the median distance of equal clips is 0


class _MMD(Distance):
    """An unbiased MMD; a subclass has the kernel."""

    direction = "lower"
    compares = "sets"
    floor = "one half of the reference against the other, near 0"

    def estimate(self, samples: np.ndarray, reference: np.ndarray) -> Estimate:
        samples, reference = samples.astype(np.float64), reference.astype(np.float64)
        within, across, within_reference = self._kernels(samples, reference)

        def mmd(rows: np.ndarray, others: np.ndarray) -> float:
            counts = np.bincount(rows, minlength=len(samples)).astype(np.float64)
            other_counts = np.bincount(others, minlength=len(reference)).astype(np.float64)
            mean_across = counts @ across @ other_counts / (len(rows) * len(others))
            return _mean_within(within, counts) + _mean_within(within_reference, other_counts) - 2 * float(mean_across)

        return mmd

    @abstractmethod
    def _kernels(self, samples: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the kernel's values: samples (N, N), samples and reference (N, M), reference (M, M)."""


class PolynomialMMD(_MMD):
    """MMD of the cubic kernel."""

    def _kernels(self, samples: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pairs = ((samples, samples), (samples, reference), (reference, reference))
        first, second, third = ((x @ y.T / x.shape[1] + 1) ** 3 for x, y in pairs)
        return first, second, third


class GaussianMMD(_MMD):
    """MMD of the Gaussian kernel, whose bandwidth is the reference's median distance."""

    def _kernels(self, samples: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pairs = ((samples, samples), (samples, reference), (reference, reference))
        squares = [_squared_distances(x, y) for x, y in pairs]
        upper = squares[2][np.triu_indices(len(reference), 1)]
        middle = (len(upper) - 1) // 2
        scale = 2 * np.partition(upper, middle)[middle] + BANDWIDTH_FLOOR
        first, second, third = (np.exp(-square / scale) for square in squares)
        return first, second, third


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return |x − y|² of all rows of ``x`` (N, D) and ``y`` (M, D), (N, M)."""
    squares: np.ndarray = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T
    return squares.clip(min=0)


def _mean_within(kernel: np.ndarray, counts: np.ndarray) -> float:
    """Return the mean of ``kernel`` (N, N) over pairs of different clips, NaN if there are none.

    Clip i is there ``counts[i]`` times.
    """
    total = counts @ kernel @ counts - np.diagonal(kernel) @ counts**2
    pairs = counts.sum() ** 2 - (counts**2).sum()
    return float(total / pairs) if pairs else float("nan")
