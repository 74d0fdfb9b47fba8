"""Exponential moving averages (EMA) of the weights with power-function profiles, and combinations of such averages.

At time t, counted in samples, an average is ∫ p(τ) θ(τ) dτ over the weights θ of all times up to t, with the profile
p(τ) ∝ τ^γ (Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv
2312.02696, section 3). Its length is the standard deviation of p divided by t: 0.1 averages over about the last tenth
of the run. The optimizer updates the averages of ``training.ema_lengths`` (``optimizer.py``). An average of any other
length and time is approximated by a linear combination of stored ones (section 3.2): see :func:`coefficients`.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class AveragingProfile:
    """The weighting of all earlier weights in the average of ``length`` at ``samples_seen``."""

    samples_seen: int
    length: float

    @property
    def exponent(self) -> float:
        """γ of the profile τ^γ."""
        return exponent(self.length)


class Combination(NamedTuple):
    """A linear combination of averages that approximates another one.

    Attributes:
        coefficients: one for each of the averages; they sum to 1.
        error: L2 distance of the combined profile from the target's, relative to the norm of the target's.
    """

    coefficients: np.ndarray
    error: float


@functools.cache
def exponent(length: float) -> float:
    """Return γ of the profile whose relative standard deviation is ``length``.

    It is the largest root of length² = (γ + 1) / ((γ + 2)² (γ + 3)).
    """
    ratio = length**-2
    return float(np.roots([1.0, 7.0, 16.0 - ratio, 12.0 - ratio]).real.max())


def decay(exponent: float, global_batch: int, samples_seen: int) -> float:
    """Return the EMA decay β, in [0, 1), of the step of ``global_batch`` samples that ends at ``samples_seen``.

    Section 3.1 of Karras et al. (arXiv 2312.02696): β = (1 − 1/t)^(γ + 1), with t in steps. β of the first step is 0,
    so that the initial weights do not count. With this β the average is exactly the profile's integral over weights
    that are constant within each step.
    """
    return (1.0 - global_batch / samples_seen) ** (exponent + 1.0)


def coefficients(stored: Sequence[AveragingProfile], target: AveragingProfile) -> Combination:
    """Return the combination of the ``stored`` profiles, which must differ, that is closest to ``target``.

    It is the least-squares solution of Karras et al.'s appendix C.3 under a constraint of ours: the coefficients sum
    to 1, so that weights that never change are reproduced exactly, and only changes of the weights contribute to the
    error.
    """
    profiles = [*stored, target]
    products = np.array([[_inner_product(p, q) for q in profiles] for p in profiles])
    norms = np.sqrt(np.diag(products))
    cosines = products / np.outer(norms, norms)
    count = len(stored)
    system = np.zeros((count + 1, count + 1))  # of the Lagrangian; profiles are scaled to norm 1
    system[:count, :count] = cosines[:count, :count]
    system[count, :count] = system[:count, count] = 1.0 / norms[:count]
    solution = np.linalg.solve(system, [*cosines[:count, count], 1.0 / norms[count]])[:count]
    difference = np.append(solution, -1.0)  # of combination and target, in normalised profiles
    error = np.sqrt(max(difference @ cosines @ difference, 0.0))
    return Combination(solution * norms[count] / norms[:count], float(error))


def _inner_product(p: AveragingProfile, q: AveragingProfile) -> float:
    """Return ∫ p(τ) q(τ) dτ in closed form."""
    first, last = sorted((p, q), key=lambda profile: profile.samples_seen)
    a, b = first.exponent, last.exponent
    ratio = first.samples_seen / last.samples_seen
    return (a + 1.0) * (b + 1.0) / (a + b + 1.0) * ratio**b / last.samples_seen
