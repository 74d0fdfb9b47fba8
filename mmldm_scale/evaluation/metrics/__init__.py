"""Metrics, one file for each or for a family, in the table :data:`METRICS` by name.

``metric.py`` has the contract. To add a metric, write its class in a file here and add the class to the loop below. To
add one from outside the package, decorate the class with :func:`register` and import its module before evaluating.
"""

from collections.abc import Collection
from typing import TypeVar, get_args

from mmldm_scale.evaluation.metrics.av_align import AVAlign
from mmldm_scale.evaluation.metrics.lpips import FrameLPIPS
from mmldm_scale.evaluation.metrics.mel_l1 import ImageMelL1, WaveformMelL1
from mmldm_scale.evaluation.metrics.metric import Direction, Metric, MetricContext, Reference
from mmldm_scale.evaluation.metrics.mrstft import WaveformMRSTFT
from mmldm_scale.evaluation.metrics.onset_offset import OnsetOffset
from mmldm_scale.evaluation.metrics.psnr import AudioImagePSNR, FramePSNR
from mmldm_scale.evaluation.metrics.ssim import FrameSSIM
from mmldm_scale.evaluation.metrics.synthetic_hits import (
    ClassAgreement,
    HitsFound,
    HitsInvented,
    PitchMatch,
    SyncError,
)

MetricClass = TypeVar("MetricClass", bound=type[Metric])

METRICS: dict[str, type[Metric]] = {}  # in the order in which results list them


def register(metric: MetricClass) -> MetricClass:
    """Add the class ``metric`` to :data:`METRICS` and return it, so that this serves as a decorator.

    Raises:
        ValueError: an attribute of the contract is missing or has a value that it does not allow, or the name is taken.
    """
    for attribute in ("name", "unit", "direction", "needs", "reference"):
        if not hasattr(metric, attribute):
            raise ValueError(f"{metric.__name__}: has no attribute {attribute!r}")
    for attribute, allowed in (("direction", get_args(Direction)), ("reference", get_args(Reference))):
        if getattr(metric, attribute) not in allowed:
            raise ValueError(f"{metric.name}: {attribute} is {getattr(metric, attribute)!r}; must be one of {allowed}")
    if METRICS.get(metric.name, metric) is not metric:
        raise ValueError(f"{metric.name}: the name is taken by {METRICS[metric.name].__qualname__}")
    METRICS[metric.name] = metric
    return metric


for _metric in (
    FramePSNR,
    FrameSSIM,
    FrameLPIPS,
    AudioImagePSNR,
    ImageMelL1,
    WaveformMelL1,
    WaveformMRSTFT,
    AVAlign,
    OnsetOffset,
    SyncError,
    HitsFound,
    HitsInvented,
    ClassAgreement,
    PitchMatch,
):
    register(_metric)


def build_metrics(
    signals: Collection[str], context: MetricContext, references: Collection[Reference] = ("paired", "set")
) -> list[Metric]:
    """Return each metric of :data:`METRICS` that needs no other signals than ``signals`` and whose weights are given.

    Args:
        references: what they may be compared with; metrics of another ``reference`` are left out.

    Raises:
        UserError: given weights cannot be loaded or do not fit ``context``.
    """
    return [
        metric(context)
        for metric in METRICS.values()
        if metric.reference in references
        and set(metric.needs) <= set(signals)
        and set(metric.weights) <= set(context.weights)
    ]
