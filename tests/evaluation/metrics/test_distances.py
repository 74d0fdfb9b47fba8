import numpy as np
import pytest
import torch

from mmldm_scale.evaluation.metrics.distances import mean_absolute, multi_resolution_stft, psnr, ssim


def pictures(seed: int = 0, size: int = 24) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, 3, size, size, generator=random) * 2 - 1  # (B, F, 3, S, S)


def sounds(seed: int = 0, samples: int = 4000) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    tones = torch.sin(torch.arange(samples) * torch.tensor([[0.05], [0.21]]))
    return 0.5 * tones + 0.01 * torch.randn(2, samples, generator=random)


def noisy(clean: torch.Tensor, level: float) -> torch.Tensor:
    return clean + level * torch.randn(clean.shape, generator=torch.Generator().manual_seed(7))


def test_psnr_is_its_definition_for_each_picture_then_averaged():
    wanted, made = pictures(), noisy(pictures(), 0.3)
    errors = ((made.clamp(-1, 1) - wanted).numpy().astype(np.float64) ** 2).mean(axis=(2, 3, 4))
    np.testing.assert_allclose(psnr(made, wanted), (10 * np.log10(4 / errors)).mean(axis=1), rtol=1e-5)


def numpy_ssim(one: np.ndarray, other: np.ndarray) -> float:
    """SSIM of two (H, W) planes in [-1, 1], from its definition; borders are mirrored."""
    reach = np.arange(-5, 6)
    window = np.exp(-(reach**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2

    def blur(plane: np.ndarray) -> np.ndarray:
        padded = np.lib.stride_tricks.sliding_window_view(np.pad(plane, 5, mode="reflect"), (11, 11))
        return (padded * window).sum(axis=(2, 3))

    a, b = blur(one), blur(other)
    aa, bb, ab = blur(one**2) - a**2, blur(other**2) - b**2, blur(one * other) - a * b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    return (((2 * a * b + c1) * (2 * ab + c2)) / ((a**2 + b**2 + c1) * (aa + bb + c2))).mean()


def test_ssim_is_its_definition():
    wanted, made = pictures(), noisy(pictures(), 0.3)
    planes = [clips.double().flatten(1, 2).numpy() for clips in (made.clamp(-1, 1), wanted)]  # (B, F·3, S, S)
    expected = [np.mean([numpy_ssim(*pair) for pair in zip(*clip, strict=True)]) for clip in zip(*planes, strict=True)]
    np.testing.assert_allclose(ssim(made, wanted), expected, atol=1e-4)


def numpy_spectrum(sound: np.ndarray, fft: int, hop: int, window: int) -> np.ndarray:
    """|STFT| of (N,), frames centred on multiples of ``hop``, from discrete Fourier transforms."""
    shape = np.zeros(fft)
    left = (fft - window) // 2
    shape[left : left + window] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.pad(sound, fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, fft)[::hop]
    return np.sqrt(np.maximum(np.abs(np.fft.rfft(frames * shape)) ** 2, 1e-7))


def test_the_stft_distance_is_parallel_wavegans():
    wanted, made = sounds(), noisy(sounds(), 0.1)
    expected = []
    for one, other in zip(made.double().numpy(), wanted.double().numpy(), strict=True):
        parts = []
        for resolution in ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)):
            a, b = (numpy_spectrum(sound, *resolution) for sound in (one, other))
            parts.append(np.sqrt(((a - b) ** 2).sum() / (b**2).sum()) + np.abs(np.log(a) - np.log(b)).mean())
        expected.append(np.mean(parts))
    np.testing.assert_allclose(multi_resolution_stft(made, wanted), expected, rtol=1e-3)


def test_what_is_equal_is_perfect_and_silence_counts_too():
    assert psnr(pictures(), pictures()).tolist() == [100, 100]
    assert ssim(pictures(), pictures()).numpy() == pytest.approx([1, 1], abs=1e-5)
    silence = torch.zeros(2, 4000)
    for sound in (sounds(), silence):
        assert multi_resolution_stft(sound, sound).tolist() == [0, 0]
    assert torch.isfinite(multi_resolution_stft(sounds(), silence)).all()
    assert mean_absolute(sounds(), sounds()).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("distance", "material", "sign"),
    [
        (psnr, pictures, -1),
        (ssim, pictures, -1),
        (multi_resolution_stft, sounds, 1),
        (mean_absolute, sounds, 1),
    ],
)
def test_what_is_further_off_is_worse(distance, material, sign):
    values = torch.stack([sign * distance(noisy(material(), level), material()) for level in (0.02, 0.1, 0.5)])
    assert (values.diff(dim=0) > 0).all()


def test_a_clip_counts_by_itself():
    wanted, made = pictures(), noisy(pictures(), 0.3)
    for distance in (psnr, ssim):
        torch.testing.assert_close(distance(made, wanted)[1:], distance(made[1:], wanted[1:]))
    heard, meant = noisy(sounds(), 0.3), sounds()
    torch.testing.assert_close(multi_resolution_stft(heard, meant)[1:], multi_resolution_stft(heard[1:], meant[1:]))
