"""Averages of the weights over the past (EMA) whose memory grows with the run, and how others are made of them.

At time t, counted in samples, such an average is ∫ p(τ) θ(τ) dτ over the weights θ of all times, with the profile
p(τ) ∝ τ^γ up to t (Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv
2312.02696, section 3). Its length is the standard deviation of p as a share of t: 0.1 remembers about the last tenth.
The optimizer moves the averages of the lengths that a run keeps (``optimizer.py``). An average of any other length, at
any time, is nearly a combination of those kept at several times (section 3.2): :func:`coefficients` finds it.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class AveragingProfile:
    """How much each instant of the past counts in the average of ``length`` at ``samples_seen``."""

    samples_seen: int
    length: float

    @property
    def exponent(self) -> float:
        """γ."""
        return exponent(self.length)


class Combination(NamedTuple):
    """What others have to be multiplied with to make an average, and how far off it is.

    Attributes:
        coefficients: one for each of the others; they sum to 1.
        error: the distance of the profile so made from the profile meant, as a share of the latter (L2 norms).
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
    """Return how much of the average is kept in the step of ``global_batch`` samples that ends at ``samples_seen``.

    Section 3.1 there: β = (1 − 1/t)^(γ + 1), with t in steps. The first step keeps nothing, so that the initial weights
    are not in the average. With this β it is the profile's integral exactly, the weights being constant in each step.
    """
    return (1.0 - global_batch / samples_seen) ** (exponent + 1.0)


def coefficients(kept: Sequence[AveragingProfile], wanted: AveragingProfile) -> Combination:
    """Return the combination of the profiles ``kept``, no two of them alike, that comes closest to ``wanted``.

    It is the least-squares solution (appendix C.3 there), but held to coefficients that sum to 1: weights that never
    changed come out as they are, and what errors remain are those of the weights' changes.
    """
    profiles = [*kept, wanted]
    products = np.array([[_product(one, other) for other in profiles] for one in profiles])
    norms = np.sqrt(np.diag(products))
    cosines = products / np.outer(norms, norms)
    count = len(kept)
    system = np.zeros((count + 1, count + 1))  # of the Lagrangian, in multiples of profiles of norm 1
    system[:count, :count] = cosines[:count, :count]
    system[count, :count] = system[:count, count] = 1.0 / norms[:count]
    solution = np.linalg.solve(system, [*cosines[:count, count], 1.0 / norms[count]])[:count]
    off = np.append(solution, -1.0)
    error = np.sqrt(max(off @ cosines @ off, 0.0))
    return Combination(solution * norms[count] / norms[:count], float(error))


def _product(one: AveragingProfile, other: AveragingProfile) -> float:
    """Return ∫ p q of two profiles: their inner product, in closed form."""
    first, last = sorted((one, other), key=lambda profile: profile.samples_seen)
    a, b = first.exponent, last.exponent
    ratio = first.samples_seen / last.samples_seen
    return (a + 1.0) * (b + 1.0) / (a + b + 1.0) * ratio**b / last.samples_seen
