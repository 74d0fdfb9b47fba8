"""Distances against closed forms, other libraries and formulas written again here."""

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance, _compute_fid
from torchmetrics.image.kid import poly_mmd

from mmldm_scale.common.rng import generator
from mmldm_scale.evaluation.distances import DISTANCES
from mmldm_scale.evaluation.distances.bootstrap import floor, interval
from mmldm_scale.evaluation.distances.clip_mean import ClipMean
from mmldm_scale.evaluation.distances.frechet import Frechet, FrechetOfEach, frechet_distance
from mmldm_scale.evaluation.distances.inception_score import InceptionScore, inception_score
from mmldm_scale.evaluation.distances.kernel import GaussianMMD, PolynomialMMD
from mmldm_scale.evaluation.distances.kl import SigmoidKL, SoftmaxKL


def vectors(count: int, dimension: int, stream: str, shift: float = 0.0) -> np.ndarray:
    """Correlated features, (count, dimension) float32, as a network gives them."""
    draw = generator(0, f"test/{stream}")
    mix = generator(0, "test/mix").standard_normal((dimension, dimension)) / np.sqrt(dimension)
    return (draw.standard_normal((count, dimension)) @ mix + shift).astype(np.float32)


def exactly(mean: np.ndarray, covariance: np.ndarray, count: int) -> np.ndarray:
    """Return (count, D) points whose mean and unbiased covariance are exactly these."""
    points = generator(1, "test/exactly").standard_normal((count, len(mean)))
    points -= points.mean(axis=0)
    whitened = points @ np.linalg.inv(np.linalg.cholesky(np.cov(points.T))).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


class TestFrechet:
    def test_closed_form_of_gaussians(self):
        """Of covariances that commute: |μ₁ − μ₂|² + Σ (√λ₁ − √λ₂)²."""
        basis = np.linalg.qr(generator(0, "test/basis").standard_normal((4, 4)))[0]
        first, second = np.array([4.0, 1.0, 9.0, 0.25]), np.array([1.0, 1.0, 4.0, 2.25])
        samples = exactly(np.array([1.0, 0, 0, 2]), basis @ np.diag(first) @ basis.T, 50)
        reference = exactly(np.zeros(4), basis @ np.diag(second) @ basis.T, 70)
        expected = 5.0 + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
        assert frechet_distance(samples, reference) == pytest.approx(expected, rel=1e-10)
        biased = 5.0 + ((np.sqrt(first * 49 / 50) - np.sqrt(second * 69 / 70)) ** 2).sum()
        assert frechet_distance(samples, reference, "biased") == pytest.approx(biased, rel=1e-10)

    @pytest.mark.parametrize(("count", "dimension"), [(200, 16), (30, 64)], ids=["full rank", "rank deficient"])
    def test_scipy_and_torchmetrics(self, count, dimension):
        linalg = pytest.importorskip("scipy.linalg")
        x, y = vectors(count, dimension, "x", 0.3), vectors(count + 9, dimension, "y")
        ours = frechet_distance(x, y)
        (m1, s1), (m2, s2) = ((z.astype(np.float64).mean(0), np.cov(z.astype(np.float64).T)) for z in (x, y))
        root = linalg.sqrtm(s1 @ s2).real
        assert ours == pytest.approx(((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * root), rel=1e-5)
        moments = [torch.from_numpy(part) for part in (m1, s1, m2, s2)]
        assert ours == pytest.approx(float(_compute_fid(*moments)), rel=1e-5)

    def test_torchmetrics_metric_on_the_same_features(self):
        """FrechetInceptionDistance streams sums; with the identity as its network it sees our features."""
        x, y = vectors(60, 8, "x", 0.3), vectors(60, 8, "y")

        class Identity(torch.nn.Module):
            num_features = 8

            def forward(self, features):
                return features

        metric = FrechetInceptionDistance(feature=Identity(), input_img_size=(8,)).set_dtype(torch.float64)
        metric.update(torch.from_numpy(y).double(), real=True)
        metric.update(torch.from_numpy(x).double(), real=False)
        assert frechet_distance(x, y) == pytest.approx(float(metric.compute()), rel=1e-6)

    def test_mm_diffusions_formula(self):
        """In float32 through singular value decompositions, as its evaluation does."""
        x, y = torch.from_numpy(vectors(300, 24, "x", 0.3)), torch.from_numpy(vectors(300, 24, "y"))

        def covariance(z):
            z = z.T - z.T.mean(dim=1, keepdim=True)
            return z @ z.T / (z.shape[1] - 1)

        def root(matrix):
            u, s, v = torch.svd(matrix)
            return u @ torch.diag(torch.where(s < 1e-10, s, s.sqrt())) @ v.T

        first, second = covariance(x), covariance(y)
        half = root(first)
        trace = torch.trace(first + second) - 2 * torch.trace(root(half @ second @ half))
        expected = trace + ((x.mean(0) - y.mean(0)) ** 2).sum()
        assert frechet_distance(x.numpy(), y.numpy()) == pytest.approx(float(expected), rel=1e-4)

    def test_identity_is_0_also_with_fewer_clips_than_dimensions(self):
        for count in (20, 500):
            x = vectors(count, 64, "x", 5.0) * 100
            assert frechet_distance(x, x) < 1e-8 * x.var()
            assert frechet_distance(x, x) >= 0

    def test_shapes_that_do_not_fit_are_errors(self):
        with pytest.raises(ValueError, match=r"\(N, D\)"):
            frechet_distance(np.zeros((4, 3)), np.zeros((4, 2)))
        with pytest.raises(ValueError, match="at least 2 rows"):
            frechet_distance(np.zeros((1, 3)), np.zeros((4, 3)))

    def test_of_each_is_the_distance_of_a_set_of_one(self):
        x, y = vectors(5, 6, "x", 1.0), vectors(40, 6, "y")
        mean, variances = y.astype(float).mean(0), y.astype(float).var(0, ddof=1)
        expected = [((row - mean) ** 2).sum() + variances.sum() for row in x.astype(float)]
        assert FrechetOfEach().by_clip(x, y) == pytest.approx(expected)
        assert FrechetOfEach().value(x, y) == pytest.approx(np.mean(expected))


class TestKernel:
    def test_mm_diffusions_kvd(self):
        """Its polynomial_mmd with scikit-learn's polynomial_kernel: degree 3, γ = 1/D, coef0 = 1."""
        x, y = vectors(40, 12, "x", 0.3).astype(float), vectors(50, 12, "y").astype(float)
        xx, yy, xy = ((1 / 12 * a @ b.T + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        expected = (xx.sum() - np.trace(xx)) / (40 * 39) + (yy.sum() - np.trace(yy)) / (50 * 49) - 2 * xy.mean()
        assert PolynomialMMD().value(x, y) == pytest.approx(expected, rel=1e-10)

    def test_torchmetrics(self):
        x, y = vectors(40, 12, "x", 0.3), vectors(40, 12, "y")
        expected = poly_mmd(torch.from_numpy(x).double(), torch.from_numpy(y).double(), 3, None, 1.0)
        assert PolynomialMMD().value(x, y) == pytest.approx(float(expected), rel=1e-10)

    def test_kadtks_formula(self):
        x, y = torch.from_numpy(vectors(30, 12, "x", 0.3)).double(), torch.from_numpy(vectors(41, 12, "y")).double()
        bandwidth = torch.pdist(y).median()

        def kernel(a, b):
            return torch.exp(-(torch.cdist(a, b) ** 2) / (2 * bandwidth**2 + 1e-8))

        def within(a):
            values = kernel(a, a)
            return (values.sum() - values.trace()) / (len(a) * (len(a) - 1))

        expected = within(x) + within(y) - 2 * kernel(x, y).mean()
        assert GaussianMMD().value(x.numpy(), y.numpy()) == pytest.approx(float(expected), rel=1e-8)

    @pytest.mark.parametrize("distance", [PolynomialMMD(), GaussianMMD()])
    def test_unbiased_around_0_for_sets_of_one_distribution(self, distance):
        values = [distance.value(vectors(24, 8, f"a{i}"), vectors(24, 8, f"b{i}")) for i in range(60)]
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values)) < 3 * error
        assert min(values) < 0

    def test_copies_of_a_clip_count_as_one_clip(self):
        x, y = vectors(6, 4, "x"), vectors(7, 4, "y", 0.5)
        estimate = PolynomialMMD().estimate(x, y)
        rows = np.array([0, 0, 1, 2])
        weights = np.outer(*[np.bincount(rows, minlength=6)] * 2) * (1 - np.eye(6))
        kernel = (x.astype(float) @ x.astype(float).T / 4 + 1) ** 3
        drawn, real = x[rows].astype(float), y.astype(float)
        own = (real @ real.T / 4 + 1) ** 3
        expected = (weights * kernel).sum() / weights.sum() + (own.sum() - np.trace(own)) / 42
        expected -= 2 * ((drawn @ real.T / 4 + 1) ** 3).mean()
        assert estimate(rows, np.arange(7)) == pytest.approx(expected, rel=1e-10)


class TestClassifiers:
    def test_inception_score_of_known_predictions(self):
        sure = np.eye(4)[[0, 1, 2, 3] * 5] * 1000.0
        assert inception_score(sure, 1) == pytest.approx(4)  # each class, surely
        assert inception_score(np.zeros((20, 4)), 1) == pytest.approx(1)  # no idea
        assert inception_score(sure[:5], 1) == pytest.approx(
            np.exp(-np.sum([0.4, 0.2, 0.2, 0.2] * np.log([0.4, 0.2, 0.2, 0.2])))
        )
        assert inception_score(sure, 5) == pytest.approx(4)
        shuffled = InceptionScore(splits=4).value(np.repeat(np.eye(4) * 1000.0, 25, axis=0), sure)
        assert shuffled > 3.4  # in the order of the names each part would have one class, and score 1

    def test_inception_score_of_torchmetrics_formula(self):
        logits = torch.from_numpy(vectors(30, 7, "logits")).double() * 3
        p, log_p = logits.softmax(1), logits.log_softmax(1)
        expected = (p * (log_p - p.mean(0, keepdim=True).log())).sum(1).mean().exp()
        assert inception_score(logits.numpy(), 1) == pytest.approx(float(expected), rel=1e-10)

    @pytest.mark.parametrize(("distance", "activation"), [(SoftmaxKL(), "softmax"), (SigmoidKL(), "sigmoid")])
    def test_kl_is_audioldm_evals(self, distance, activation):
        samples, real = (torch.from_numpy(vectors(9, 7, name)).double() for name in ("x", "y"))
        q, p = ((z.softmax(1) if activation == "softmax" else z.sigmoid()) for z in (samples, real))
        expected = torch.nn.functional.kl_div((q + 1e-6).log(), p, reduction="sum") / 9
        assert distance.value(samples.numpy(), real.numpy()) == pytest.approx(float(expected), rel=1e-8)
        assert abs(distance.value(real.numpy(), real.numpy())) < 1e-3

    def test_extreme_logits_give_numbers(self):
        logits = np.array([[1000.0, -1000.0], [-1000.0, 1000.0]], np.float32)
        for distance in (SoftmaxKL(), SigmoidKL()):
            assert np.isfinite(distance.value(logits, logits[::-1]))


def test_the_mean_leaves_out_clips_without_a_value():
    features = np.array([[0, 1.0], [0, np.nan], [0, 3.0]])
    assert ClipMean(column=1).value(features, features) == 2
    assert np.isnan(ClipMean(column=1).value(features[1:2], features))


@pytest.mark.parametrize("name", DISTANCES)
def test_interval_and_floor_are_functions_of_seed_and_name_and_lie_around_the_value(name):
    distance = DISTANCES[name]()
    x, y = vectors(60, 5, "x", 0.5), vectors(60, 5, "y")
    value = distance.value(x, y)
    first = interval(distance, x, y, "fvd", 0, 60, 0.9)
    assert first == interval(distance, x, y, "fvd", 0, 60, 0.9)
    assert first != interval(distance, x, y, "fad", 0, 60, 0.9)
    assert first.low < value < first.high
    wider = interval(distance, x, y, "fvd", 0, 60, 0.99)
    assert wider.high - wider.low > first.high - first.low
    found = floor(distance, x, y, "fvd", 0, 4)
    assert found == floor(distance, x, y, "fvd", 0, 4)
    assert found.clips == 30


def test_the_floor_is_the_mean_of_halves_against_halves():
    y = vectors(40, 5, "y")
    found = floor(Frechet(), y + 10, y, "fvd", 3, 2)
    values = []
    for number in range(2):
        order = generator(3, "evaluate/floor/fvd", number).permutation(40)
        values.append(frechet_distance(y[order[:20]], y[order[20:]]))
    assert found.value == pytest.approx(np.mean(values))
    assert found.samples > 400 > found.value  # the samples are 10 away in each of 5 dimensions


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """The mean of 40 numbers, of which 90 % intervals hold the true mean in about 9 of 10 trials."""
    held = 0
    for trial in range(100):
        x = generator(0, "test/truth", trial).standard_normal((40, 1))
        found = interval(ClipMean(), x, x, "mean", trial, 100, 0.9)
        held += found.low < 0 < found.high
    assert 80 <= held <= 97


def test_the_interval_of_a_share_is_within_0_and_1():
    x = np.array([[1.0]] * 19 + [[0.0]])
    found = interval(ClipMean(), x, x, "share", 0, 200, 0.95)
    rows = [generator(0, "evaluate/bootstrap/share", number).integers(20, size=20) for number in range(200)]
    assert (found.low, found.high) == pytest.approx(np.percentile([x[r].mean() for r in rows], [2.5, 97.5]))
    assert found.high == 1


def test_the_interval_lies_around_the_value_where_copies_raise_the_distance():
    """With fewer clips than dimensions, resampled sets are farther apart than the sets themselves."""
    x, y = vectors(20, 40, "x", 0.5), vectors(20, 40, "y")
    rows = [generator(0, "test/rows", number).integers(20, size=(2, 20)) for number in range(50)]
    assert all(frechet_distance(x[a], y[b]) > frechet_distance(x, y) for a, b in rows)
    found = interval(Frechet(), x, y, "fvd", 0, 60, 0.9)
    assert found.low < frechet_distance(x, y) < found.high
