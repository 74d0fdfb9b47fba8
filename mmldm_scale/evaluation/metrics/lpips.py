"""LPIPS of the frames (Zhang et al. 2018), over a backbone whose weights the user gives."""

from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.metrics.clip_metric import ClipMetric
from mmldm_scale.evaluation.metrics.metric import MetricBatch, MetricContext
from mmldm_scale.models import lpips


class FrameLPIPS(ClipMetric):
    """LPIPS of the frames, the mean over each clip's."""

    name = "lpips"
    unit = ""
    direction = "lower"
    needs = ("frames",)
    weights = ("lpips",)

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        if context.media.size < lpips.SMALLEST:
            raise UserError(
                f"lpips: needs pictures of at least {lpips.SMALLEST} pixels, these are {context.media.size}"
            )
        self.lpips = lpips.load_lpips(context.weights["lpips"])

    def clip_values(self, batch: MetricBatch) -> Tensor:
        samples, reference = batch.samples["frames"], batch.reference["frames"]  # (B, F, 3, S, S)
        values = self.lpips(samples.flatten(0, 1), reference.flatten(0, 1))  # (B·F,)
        return values.unflatten(0, reference.shape[:2]).mean(dim=1)
