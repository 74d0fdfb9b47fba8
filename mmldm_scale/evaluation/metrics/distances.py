"""How far clips are from what they should be, picture by picture and sound by sound.

Every function takes what was made and then what it should be, and returns one float32 value a clip, (B,).
"""

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

RANGE = (-1.0, 1.0)  # of pictures: an error is relative to 2, and what lies beyond is clipped
HIGHEST_PSNR = 100.0  # dB, in place of the infinity of equal pictures

# (FFT, hop, window) in samples, whatever the sample rate: Parallel WaveGAN's (arXiv 1910.11480).
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
LEAST_POWER = 1e-7  # of a spectrogram's bin: keeps the logarithm of silence finite


def psnr(made: Tensor, wanted: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, the mean over each clip's pictures, of which none counts more than
    :data:`HIGHEST_PSNR`.

    Args:
        made, wanted: (B, F, 3, H, W) in [-1, 1].
    """
    pictures = [clips.float().flatten(0, 1) for clips in (made, wanted)]
    values = peak_signal_noise_ratio(*pictures, data_range=RANGE, reduction="none", dim=(1, 2, 3))  # (B·F,)
    return values.clamp(max=HIGHEST_PSNR).unflatten(0, made.shape[:2]).mean(dim=1)


def ssim(made: Tensor, wanted: Tensor) -> Tensor:
    """Return the structural similarity (Gaussian window of σ = 1.5 pixels), the mean over each clip's pictures.

    Args:
        made, wanted: (B, F, 3, H, W) in [-1, 1].
    """
    pictures = [clips.float().flatten(0, 1) for clips in (made, wanted)]
    values = structural_similarity_index_measure(*pictures, data_range=RANGE, reduction="none")  # (B·F,)
    return values.unflatten(0, made.shape[:2]).mean(dim=1)


def mean_absolute(made: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean absolute error of (B, …), in its unit."""
    return (made.float() - wanted.float()).abs().flatten(1).mean(dim=1)


def multi_resolution_stft(made: Tensor, wanted: Tensor) -> Tensor:
    """Return Parallel WaveGAN's multi-resolution STFT distance, without unit.

    It is the mean over :data:`RESOLUTIONS` of the spectral convergence ‖|S| − |Ŝ|‖ / ‖|S|‖ (Frobenius norms over one
    clip) plus the mean absolute difference of ln |S|; S is the ``wanted`` sound's STFT, with a Hann window.

    Args:
        made, wanted: (B, N) waveforms in [-1, 1], N > 1024.
    """
    return torch.stack([_stft_distance(made, wanted, *resolution) for resolution in RESOLUTIONS]).mean(dim=0)


def _stft_distance(made: Tensor, wanted: Tensor, fft: int, hop: int, window: int) -> Tensor:
    theirs, ours = (_magnitude(sound.float(), fft, hop, window) for sound in (wanted, made))  # (B, bins, frames)
    convergence = (theirs - ours).norm(dim=(1, 2)) / theirs.norm(dim=(1, 2))
    return convergence + mean_absolute(ours.log(), theirs.log())


def _magnitude(sound: Tensor, fft: int, hop: int, window: int) -> Tensor:
    shape = torch.hann_window(window, device=sound.device)
    spectrum = torch.stft(sound, fft, hop, window, shape, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square()).clamp(min=LEAST_POWER).sqrt()
