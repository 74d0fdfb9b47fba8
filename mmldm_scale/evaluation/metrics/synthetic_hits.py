"""The numbers of the synthetic benchmark as metrics; docs/synthetic_benchmark.md has what they mean."""

import math

import torch
from torch import Tensor

from mmldm_scale.evaluation.metrics.clip_metric import ClipMetric
from mmldm_scale.evaluation.metrics.metric import MetricBatch, MetricState
from mmldm_scale.evaluation.synthetic.agreement import hit_agreement
from mmldm_scale.media.pixels import to_frames


class SyntheticHits(ClipMetric):
    """Mean of one number of the synthetic benchmark over the clips that have one, NaN if none has."""

    needs = ("frames", "waveform")
    reference = "none"
    unit = ""

    def clip_values(self, batch: MetricBatch) -> Tensor:
        media = self.context.media
        sounds = batch.samples["waveform"].float().cpu().numpy()
        clips = zip(to_frames(batch.samples["frames"]).cpu().numpy(), sounds, strict=True)
        agreements = [hit_agreement(frames, media.fps, sound, media.audio.sample_rate) for frames, sound in clips]
        return torch.tensor([agreement.values()[self.name] for agreement in agreements], dtype=torch.float64)

    def value(self, state: MetricState) -> float:
        numbers = list(self.by_clip(state).values())
        return sum(numbers) / len(numbers) if numbers else math.nan

    def by_clip(self, state: MetricState) -> dict[int, float]:
        return {index: number for index, number in super().by_clip(state).items() if not math.isnan(number)}


class SyncError(SyntheticHits):
    """Median time between the hits in the picture and their sounds."""

    name = "sync_error"
    unit = "ms"
    direction = "lower"


class HitsFound(SyntheticHits):
    """Share of the hits in the picture that have a sound within 0.1 s."""

    name = "hits_found"
    direction = "higher"


class HitsInvented(SyntheticHits):
    """Share of the sounds that have no hit in the picture within 0.1 s."""

    name = "hits_invented"
    direction = "lower"


class ClassAgreement(SyntheticHits):
    """Share of the clips whose picture and sound are of the same class."""

    name = "class_agreement"
    direction = "higher"


class PitchMatch(SyntheticHits):
    """Share of the steps from hit to hit, of bells and blocks, that are heard with the pitch going as it should."""

    name = "pitch_match"
    direction = "higher"
