"""Multi-resolution STFT distance of the waveform (Parallel WaveGAN, arXiv 1910.11480)."""

import torch
from torch import Tensor

from mmldm_scale.evaluation.metrics.clip_metric import ClipMetric
from mmldm_scale.evaluation.metrics.metric import MetricBatch

# (FFT, hop, window) in samples, whatever the sample rate: Parallel WaveGAN's.
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
MIN_POWER = 1e-7  # of a spectrogram's bin: keeps the logarithm of silence finite


def multi_resolution_stft(samples: Tensor, reference: Tensor) -> Tensor:
    """Return Parallel WaveGAN's multi-resolution STFT distance of B waveforms, without unit: (B,) float32.

    It is the mean over :data:`RESOLUTIONS` of the spectral convergence ‖|S| − |Ŝ|‖ / ‖|S|‖ (Frobenius norms over one
    clip) plus the mean absolute difference of ln |S|, where S is the STFT of ``reference`` with a Hann window.

    Args:
        samples, reference: (B, N) in [-1, 1], N > 1024.
    """
    return torch.stack([_stft_distance(samples, reference, *resolution) for resolution in RESOLUTIONS]).mean(dim=0)


def _stft_distance(samples: Tensor, reference: Tensor, fft: int, hop: int, window: int) -> Tensor:
    sample_bins, reference_bins = (_magnitude(sound.float(), fft, hop, window) for sound in (samples, reference))
    convergence = (reference_bins - sample_bins).norm(dim=(1, 2)) / reference_bins.norm(dim=(1, 2))
    return convergence + (sample_bins.log() - reference_bins.log()).abs().flatten(1).mean(dim=1)


def _magnitude(sound: Tensor, fft: int, hop: int, window: int) -> Tensor:
    """Return |STFT| of (B, N): (B, bins, frames)."""
    shape = torch.hann_window(window, device=sound.device)
    spectrum = torch.stft(sound, fft, hop, window, shape, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square()).clamp(min=MIN_POWER).sqrt()


class WaveformMRSTFT(ClipMetric):
    """Multi-resolution STFT distance of the waveform."""

    name = "mrstft"
    unit = ""
    direction = "lower"
    needs = ("waveform",)

    def clip_values(self, batch: MetricBatch) -> Tensor:
        return multi_resolution_stft(batch.samples["waveform"], batch.reference["waveform"])
