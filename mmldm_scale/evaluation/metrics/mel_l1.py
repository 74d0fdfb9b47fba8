"""Mean absolute error of the mel spectrogram in dB: of the one that the audio image encodes, and of the waveform's."""

from torch import Tensor

from mmldm_scale.evaluation.metrics.clip_metric import ClipMetric
from mmldm_scale.evaluation.metrics.metric import MetricBatch, MetricContext
from mmldm_scale.media.audio_image import AudioImage


def mean_absolute_error(samples: Tensor, reference: Tensor) -> Tensor:
    """Return the mean absolute error of each entry of a batch (B, ...), in the unit of the arguments: (B,) float32."""
    return (samples.float() - reference.float()).abs().flatten(1).mean(dim=1)


class ImageMelL1(ClipMetric):
    """Error of the mel spectrogram that the samples' audio image encodes, before any vocoder."""

    name = "image_mel_l1"
    unit = "dB"
    direction = "lower"
    needs = ("audio_image", "waveform")

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.audio_image = AudioImage(context.media)

    def clip_values(self, batch: MetricBatch) -> Tensor:
        reference = self.audio_image.decibels(batch.reference["waveform"])  # (B, n_mels, T)
        return mean_absolute_error(self.audio_image.to_decibels(batch.samples["audio_image"]), reference)


class WaveformMelL1(ClipMetric):
    """Error of the mel spectrogram of the samples' waveform, after the vocoder."""

    name = "mel_l1"
    unit = "dB"
    direction = "lower"
    needs = ("waveform",)

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.audio_image = AudioImage(context.media)

    def clip_values(self, batch: MetricBatch) -> Tensor:
        samples, reference = batch.samples["waveform"], batch.reference["waveform"]  # (B, N)
        return mean_absolute_error(self.audio_image.decibels(samples), self.audio_image.decibels(reference))
