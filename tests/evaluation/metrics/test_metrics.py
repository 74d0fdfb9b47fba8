"""The contract of a metric: what every metric of the table keeps, and metrics written outside the package."""

import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import MediaConfig
from mmldm_scale.evaluation.metrics import METRICS, build_metrics, register
from mmldm_scale.evaluation.metrics.clip_metric import ClipMetric
from mmldm_scale.evaluation.metrics.metric import Metric, MetricAccumulator, MetricBatch, MetricContext, MetricState
from tests.support.datasets.random_signals import noisy, pictures, sounds
from tests.support.tiny_models import tiny_autoencoder
from tests.support.tiny_models.backbones import write_alexnet

MEDIA = tiny_autoencoder.MEDIA
CLIPS = 7
SIGNALS = ("frames", "audio_image", "waveform")
PAIRED = [name for name, metric in METRICS.items() if metric.reference == "paired"]


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> MetricContext:
    return MetricContext(MEDIA, {"lpips": str(write_alexnet(tmp_path_factory.mktemp("lpips") / "alexnet.pth"))})


def signals(level: float) -> dict[str, Tensor]:
    """Signals of CLIPS clips with noise of the standard deviation ``level``."""
    clean = {
        "frames": pictures(0, MEDIA.size, CLIPS),
        "audio_image": pictures(1, MEDIA.size, CLIPS)[:, 0],
        "waveform": sounds(0, MEDIA.audio_samples, CLIPS),
    }
    return {name: noisy(tensor, level) for name, tensor in clean.items()}


def batch(indices: Sequence[int], level: float = 0.2) -> MetricBatch:
    parts = [{name: tensor[list(indices)] for name, tensor in signals(level).items()} for level in (level, 0.0)]
    return MetricBatch(indices, *parts)


def through_a_file(state: MetricState) -> MetricState:
    """What another job reads of ``state``."""
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    return dict(np.load(file, allow_pickle=False))


def assert_merges_exactly(metric: Metric, states: Sequence[MetricState]) -> None:
    """Assert that the value of ``states`` is the same to the last bit in one job, in two and in seven, in any order."""
    expected = metric.value(metric.merge(states))
    shuffle = random.Random(0).shuffle
    for jobs in (1, 2, 7):
        for _ in range(3):
            shuffled = list(states)
            shuffle(shuffled)
            by_job = [metric.merge(part) for job in range(jobs) if (part := shuffled[job::jobs])]
            assert metric.value(metric.merge([through_a_file(state) for state in by_job])) == expected
            one_by_one = shuffled[0]
            for state in shuffled[1:]:
                one_by_one = metric.merge([one_by_one, state])
            assert metric.value(one_by_one) == expected


@pytest.mark.parametrize("name", PAIRED)
def test_parts_merge_to_the_same_digits_in_any_order(name, context):
    metric = METRICS[name](context)
    states = [metric.measure(batch([index])) for index in range(CLIPS)]
    assert_merges_exactly(metric, states)
    whole = metric.measure(batch(range(CLIPS)))
    assert metric.value(whole) == pytest.approx(metric.value(metric.merge(states)), rel=1e-5)
    by_clip = metric.by_clip(whole)
    assert list(by_clip) == list(range(CLIPS))
    assert metric.value(whole) == pytest.approx(np.mean(list(by_clip.values())), rel=1e-12)


@pytest.mark.parametrize("name", PAIRED)
def test_more_noise_is_worse(name, context):
    metric = METRICS[name](context)
    values = [metric.value(metric.measure(batch([0, 1], level))) for level in (0.02, 0.1, 0.5)]
    assert sorted(values, reverse=metric.direction == "higher") == values
    assert len(set(values)) == 3


def test_metrics_equal_a_calculation_from_the_signals(context):
    """The metrics whose formulas have no test of their own, and which signal each reads."""
    samples, reference = signals(0.2), signals(0.0)
    accumulator = MetricAccumulator(build_metrics(SIGNALS, context))
    for indices in ([0, 1, 2], [3, 4], [5, 6]):
        accumulator.update(batch(indices))
    values = accumulator.values()
    audio = METRICS["mel_l1"](context).audio_image
    mels = audio.decibels(reference["waveform"])
    errors = [audio.to_decibels(samples["audio_image"]) - mels, audio.decibels(samples["waveform"]) - mels]
    assert values["image_mel_l1"] == pytest.approx(errors[0].double().abs().mean().item(), rel=1e-5)
    assert values["mel_l1"] == pytest.approx(errors[1].double().abs().mean().item(), rel=1e-5)
    errors = [samples[name].clamp(-1, 1) - reference[name] for name in ("frames", "audio_image")]
    decibels = [10 * (4 / error.double().square().mean(dim=(-3, -2, -1))).log10() for error in errors]
    assert values["psnr"] == pytest.approx(decibels[0].mean().item(), rel=1e-5)
    assert values["audio_image_psnr"] == pytest.approx(decibels[1].mean().item(), rel=1e-5)


def test_a_metric_is_built_where_its_signals_and_weights_are_given(context):
    names = [metric.name for metric in build_metrics(SIGNALS, context)]
    assert names == ["psnr", "ssim", "lpips", "audio_image_psnr", "image_mel_l1", "mel_l1", "mrstft"]
    assert [metric.name for metric in build_metrics(["frames"], MetricContext(MEDIA))] == ["psnr", "ssim"]
    with pytest.raises(UserError, match="lpips: needs pictures of at least 32 pixels, these are 16"):
        build_metrics(SIGNALS, MetricContext(MediaConfig(size=16), context.weights))


class ClipIndex(ClipMetric):
    """Each clip's own "frames", one number."""

    name = "clip_index"
    unit = ""
    direction = "higher"
    needs = ("frames",)

    def clip_values(self, batch: MetricBatch) -> Tensor:
        return batch.samples["frames"]


def test_a_mean_over_clips_is_exact_in_float64_and_counts_each_clip_once():
    metric = ClipIndex(MetricContext(MEDIA))
    values = torch.tensor([1e8, 1.0, -1e8, 0.1, 3e-9], dtype=torch.float64)
    states = [metric.measure(MetricBatch([i], {"frames": values[i : i + 1]})) for i in range(len(values))]
    assert_merges_exactly(metric, states)
    assert metric.value(metric.merge(states)) == sum(values.tolist()) / len(values)
    with pytest.raises(ValueError, match="clip_index: clip 3 is measured twice"):
        metric.merge([*states, states[3]])
    with pytest.raises(ValueError, match=r"clip_index: clip_values returned shape \(5,\) for 2 clips"):
        metric.measure(MetricBatch([0, 1], {"frames": values}))


class FrechetMean(Metric):
    """Squared distance of mean features: a metric of two distributions over the features of an extractor.

    The options, the extractor's given weights and the two sets of different sizes are what Fréchet distances need.
    """

    name = "frechet_mean"
    unit = ""
    direction = "lower"
    needs = ("features/toy",)
    reference = "set"
    weights = ("toy",)

    def __init__(self, context: MetricContext, *, scale: float = 1.0) -> None:
        super().__init__(context)
        self.scale = float(Path(context.weights["toy"]).read_text()) * scale

    def measure(self, batch: MetricBatch) -> MetricState:
        state = {}
        for side, part in (("samples", batch.samples), ("reference", batch.reference)):
            features = part["features/toy"].double().numpy() if part else np.empty((0, 2))  # (B, 2)
            state[f"{side}/index"] = np.asarray(batch.indices if part else [], np.int64)
            state[f"{side}/features"] = features * self.scale
        return state

    def merge(self, states: Sequence[MetricState]) -> MetricState:
        return {key: np.concatenate([state[key] for state in states]) for key in states[0]}

    def value(self, state: MetricState) -> float:
        means = []
        for side in ("samples", "reference"):
            order = np.argsort(state[f"{side}/index"])
            means.append(state[f"{side}/features"][order].mean(axis=0))
        return float(np.square(means[0] - means[1]).sum())


@pytest.fixture
def frechet_mean() -> Iterator[type[Metric]]:
    yield register(FrechetMean)
    METRICS.pop(FrechetMean.name)


def test_a_metric_of_distributions_written_outside_the_package(frechet_mean, tmp_path):
    (tmp_path / "toy.txt").write_text("2.0")
    assert build_metrics(["features/toy"], MetricContext(MEDIA)) == []  # its weights are not given
    context = MetricContext(MEDIA, {"toy": str(tmp_path / "toy.txt")})
    metrics = build_metrics(["features/toy"], context)
    assert [metric.name for metric in metrics] == ["frechet_mean"]
    features = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    samples, reference = features[:20], features[20:]
    batches = [MetricBatch(range(i, i + 4), samples={"features/toy": samples[i : i + 4]}) for i in range(0, 20, 4)]
    batches += [MetricBatch(range(i, i + 5), reference={"features/toy": reference[i : i + 5]}) for i in range(0, 30, 5)]
    accumulators = [MetricAccumulator(metrics) for _ in range(2)]
    for number, part in enumerate(batches):
        assert accumulators[number % 2].update(part) == {}  # no values by clip
    accumulators[0].merge({name: through_a_file(state) for name, state in accumulators[1].states.items()})
    expected = (2 * (samples.double().mean(0) - reference.double().mean(0))).square().sum().item()
    assert accumulators[0].values() == {"frechet_mean": pytest.approx(expected, rel=1e-12)}
    metric = frechet_mean(context, scale=2.0)
    assert_merges_exactly(metric, [metric.measure(part) for part in batches])
    assert metric.value(metric.merge([metric.measure(part) for part in batches])) == pytest.approx(4 * expected)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"name": "psnr"}, "psnr: the name is taken by FramePSNR"),
        ({"direction": "up"}, r"clip_index: direction is 'up'; must be one of \('higher', 'lower'\)"),
        ({"reference": "all"}, r"clip_index: reference is 'all'; must be one of \('none', 'paired', 'set'\)"),
    ],
)
def test_a_metric_that_breaks_the_contract_is_not_registered(attributes, message):
    before = dict(METRICS)
    with pytest.raises(ValueError, match=message):
        register(type("Changed", (ClipIndex,), attributes))
    with pytest.raises(ValueError, match="Nameless: has no attribute 'name'"):
        register(type("Nameless", (ClipMetric,), {}))
    assert before == METRICS
