"""Peak signal-to-noise ratio, of the frames and of the audio image."""

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from mmldm_scale.evaluation.metrics.clip_metric import ClipMetric
from mmldm_scale.evaluation.metrics.metric import MetricBatch

RANGE = (-1.0, 1.0)  # of pictures: an error is relative to 2, and values outside are clipped
MAX_PSNR = 100.0  # dB, in place of the infinity of equal pictures


def psnr(samples: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of B clips in dB, (B,) float32.

    It is the mean over each clip's pictures, of which none counts more than :data:`MAX_PSNR`.

    Args:
        samples, reference: (B, F, 3, H, W) in [-1, 1].
    """
    predictions, targets = (clips.float().flatten(0, 1) for clips in (samples, reference))  # (B·F, 3, H, W)
    values = peak_signal_noise_ratio(predictions, targets, data_range=RANGE, reduction="none", dim=(1, 2, 3))  # (B·F,)
    return values.clamp(max=MAX_PSNR).unflatten(0, samples.shape[:2]).mean(dim=1)


class FramePSNR(ClipMetric):
    """PSNR of the frames."""

    name = "psnr"
    unit = "dB"
    direction = "higher"
    needs = ("frames",)

    def clip_values(self, batch: MetricBatch) -> Tensor:
        return psnr(batch.samples["frames"], batch.reference["frames"])


class AudioImagePSNR(ClipMetric):
    """PSNR of the audio image."""

    name = "audio_image_psnr"
    unit = "dB"
    direction = "higher"
    needs = ("audio_image",)

    def clip_values(self, batch: MetricBatch) -> Tensor:
        return psnr(batch.samples["audio_image"][:, None], batch.reference["audio_image"][:, None])
