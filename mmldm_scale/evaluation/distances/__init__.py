"""Distances between sets of feature vectors, in the table :data:`DISTANCES` by the name that protocols use.

``distance.py`` has the contract. To add one, write its class in a file here and add it to the table.
"""

from mmldm_scale.evaluation.distances.clip_mean import ClipMean
from mmldm_scale.evaluation.distances.distance import Distance
from mmldm_scale.evaluation.distances.frechet import Frechet, FrechetOfEach
from mmldm_scale.evaluation.distances.inception_score import InceptionScore
from mmldm_scale.evaluation.distances.kernel import GaussianMMD, PolynomialMMD
from mmldm_scale.evaluation.distances.kl import SigmoidKL, SoftmaxKL

DISTANCES: dict[str, type[Distance]] = {
    "frechet": Frechet,
    "frechet_of_each": FrechetOfEach,
    "polynomial_mmd": PolynomialMMD,
    "gaussian_mmd": GaussianMMD,
    "inception_score": InceptionScore,
    "kl_softmax": SoftmaxKL,
    "kl_sigmoid": SigmoidKL,
    "mean": ClipMean,
}
