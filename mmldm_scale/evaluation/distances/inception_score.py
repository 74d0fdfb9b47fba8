"""Inception score: how sure a classifier is of each sample, and how many classes the samples cover.

    exp mean KL(p(class | sample) ‖ mean p(class))

From logits, as torch-fidelity and audioldm_eval compute it: the samples are shuffled, and the score is the mean over
equal parts of them. It lies between 1 and the number of classes and depends on the size of a part.
"""

import numpy as np

from mmldm_scale.common import rng
from mmldm_scale.evaluation.distances.distance import Distance, Estimate


def inception_score(logits: np.ndarray, splits: int = 10) -> float:
    """Return the mean score of ``splits`` parts of ``logits``, (N, classes), in their order; at most N parts."""
    log_p = log_softmax(logits)
    scores = []
    for part in np.array_split(log_p, min(splits, len(log_p))):
        p = np.exp(part)
        with np.errstate(divide="ignore"):
            log_mean = np.log(p.mean(axis=0))
        terms = np.where(p > 0, p * (part - log_mean), 0.0)
        scores.append(np.exp(terms.sum(axis=1).mean()))
    return float(np.mean(scores))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithm of the softmax of each row of ``logits``, (N, classes) float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


class InceptionScore(Distance):
    """Inception score of the samples; needs logits."""

    direction = "higher"
    compares = "nothing"
    floor = "the score of a half of the reference"
    note = "Inception scores depend on the number of clips in a part: compare only figures of equal counts."

    def __init__(self, splits: int = 10) -> None:
        self.splits = splits

    def estimate(self, samples: np.ndarray, reference: np.ndarray) -> Estimate:
        order = rng.generator(0, "inception_score").permutation(len(samples))  # names often begin with the class
        rank = np.argsort(order)
        return lambda rows, others: inception_score(samples[rows[np.argsort(rank[rows], kind="stable")]], self.splits)
