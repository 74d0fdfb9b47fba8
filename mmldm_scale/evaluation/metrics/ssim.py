"""Structural similarity of the frames (Wang et al. 2004)."""

from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from mmldm_scale.evaluation.metrics.clip_metric import ClipMetric
from mmldm_scale.evaluation.metrics.metric import MetricBatch

RANGE = (-1.0, 1.0)  # of pictures; values outside are clipped


def ssim(samples: Tensor, reference: Tensor) -> Tensor:
    """Return the structural similarity of B clips, (B,) float32: the mean over each clip's pictures.

    The window is a Gaussian of σ = 1.5 pixels.

    Args:
        samples, reference: (B, F, 3, H, W) in [-1, 1].
    """
    predictions, targets = (clips.float().flatten(0, 1) for clips in (samples, reference))  # (B·F, 3, H, W)
    values = structural_similarity_index_measure(predictions, targets, data_range=RANGE, reduction="none")
    assert isinstance(values, Tensor)  # a tuple only where the whole picture of similarities is asked for
    return values.unflatten(0, samples.shape[:2]).mean(dim=1)


class FrameSSIM(ClipMetric):
    """SSIM of the frames."""

    name = "ssim"
    unit = ""
    direction = "higher"
    needs = ("frames",)

    def clip_values(self, batch: MetricBatch) -> Tensor:
        return ssim(batch.samples["frames"], batch.reference["frames"])
