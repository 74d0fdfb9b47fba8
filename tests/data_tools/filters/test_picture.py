"""Each measure of the picture, on pictures whose answer is known."""

import numpy as np
import pytest

from data_tools.filters import picture

RANDOM = np.random.default_rng(0)


def drifting(count: int, speed: int = 2, seed: int = 0) -> np.ndarray:
    """Return (count, 128, 128) of a soft random texture, 40 to 215, that moves to the right by ``speed`` pixels."""
    waves = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(128), np.arange(128))
    texture = sum(np.sin(2 * np.pi * (a * x + b * y) / 128 + c) for a, b, c in waves.uniform(0, 6, (8, 3)).round())
    texture = (40 + 175 * (texture - texture.min()) / np.ptp(texture)).round()
    return np.stack([np.roll(texture, i * speed, axis=1) for i in range(count)])


def test_a_black_second_in_ten(view):
    pictures = drifting(100)
    pictures[30:40] = 12
    pictures[30:40, :2, :100] = 255  # 1.2 % of the pixels: still a black picture
    assert picture.black_fraction(view(pictures)) == pytest.approx(0.1)
    pictures[30:40, :4] = 255  # 3.1 %: something is shown
    assert picture.black_fraction(view(pictures)) == 0.0


def test_a_frozen_second_in_ten(view):
    pictures = drifting(101)
    pictures[30:41] = pictures[30]
    assert picture.frozen_fraction(view(pictures)) == pytest.approx(0.1)


def test_pictures_that_stay_for_a_moment_are_not_frozen(view):
    pictures = drifting(100)[np.arange(100) // 3]  # a video of 3.3 frames a second
    assert picture.frozen_fraction(view(pictures)) == 0.0
    assert picture.frozen_fraction(view(np.repeat(drifting(1), 100, 0))) == 1.0


def test_cuts_are_found_where_they_are(view):
    scenes = [drifting(30, seed=1), 255 - drifting(40, seed=5), drifting(30, seed=9)]
    made = view(np.concatenate(scenes))
    assert picture.cuts(made).tolist() == [30, 70]
    assert picture.cuts_per_minute(made) == pytest.approx(12.0)


def test_a_flash_a_fade_and_a_seam_are_no_cuts(view):
    flash = drifting(100)
    flash[50] = 255
    assert picture.cuts(view(flash)).tolist() == []
    fade = drifting(100) * np.linspace(1, 0, 100)[:, None, None]
    assert picture.cuts(view(fade)).tolist() == []
    seam = np.concatenate([drifting(50), 255 - drifting(50)])
    assert picture.cuts(view(seam)).tolist() == [50]
    assert picture.cuts(view(seam, seams=(50,))).tolist() == []


def test_motion_is_the_mean_change_between_pictures(view):
    pictures = drifting(20, speed=3)
    told = np.mean([np.abs(a - b).mean() for a, b in zip(pictures[1:], pictures[:-1], strict=True)])
    assert picture.motion(view(pictures)) == pytest.approx(told, rel=1e-6)
    cut = np.concatenate([pictures, 255 - pictures])
    assert picture.motion(view(cut)) == pytest.approx(told, rel=0.02)
    assert picture.motion(view()) == 0.0


def crete_roffet(image: np.ndarray) -> float:
    """Blur along the rows of ``image`` as the paper writes it, pixel by pixel."""
    width = image.shape[1]
    change = total = 0.0
    for row in image.astype(float):
        ends = np.concatenate([np.full(4, row[0]), row, np.full(4, row[-1])])
        smooth = [ends[x : x + 9].mean() for x in range(width)]
        for x in range(1, width):
            own = abs(row[x] - row[x - 1])
            total += own
            change += max(0.0, own - abs(smooth[x] - smooth[x - 1]))
    return (total - change) / total


def test_sharpness_is_crete_roffets_measure(view):
    image = drifting(1)[0] + RANDOM.integers(-15, 15, (128, 128))
    made = view(image[None])
    detail = made.details[0]
    assert picture.sharpness(made) == pytest.approx(1 - max(crete_roffet(detail), crete_roffet(detail.T)), abs=1e-4)


def test_sharpness_falls_with_blur_and_not_with_contrast(view):
    sharp = RANDOM.integers(0, 2, (1, 128, 128)).repeat(4, 1).repeat(4, 2)[:, :128, :128] * 200 + 20
    smeared = np.mean([np.roll(sharp, shift, axis=2) for shift in range(12)], axis=0)
    assert picture.sharpness(view(sharp)) > picture.sharpness(view(smeared)) + 0.2
    assert picture.sharpness(view(sharp // 2)) == pytest.approx(picture.sharpness(view(sharp)), abs=0.01)
    assert picture.sharpness(view()) is None


def test_letterbox_is_the_area_of_the_black_bars(view):
    pictures = drifting(50)
    assert picture.letterbox(view(pictures)) == 0.0
    pictures[:, :16] = pictures[:, -16:] = 3
    assert picture.letterbox(view(pictures)) == pytest.approx(0.25)
    pictures[:, :, :32] = pictures[:, :, -32:] = 0
    assert picture.letterbox(view(pictures)) == pytest.approx(1 - 0.75 * 0.5)
    assert picture.letterbox(view(np.zeros((10, 128, 128)))) == 1.0


def test_bars_with_text_are_still_bars_and_no_letterbox(view):
    pictures = drifting(50)
    pictures[:, -32:] = np.where(RANDOM.random((32, 128)) < 0.2, 250, 5)  # as text: light on dark, standing still
    assert picture.letterbox(view(pictures)) == 0.0
    assert picture.still_bars(view(pictures)) == pytest.approx(0.25, abs=0.01)


def test_a_camera_that_stands_still_makes_no_bars(view):
    x, y = np.meshgrid(np.arange(128), np.arange(128))
    pictures = np.repeat((60 + 60 * np.sin(x / 9) * np.cos(y / 11) + y / 2)[None], 50, 0)
    for i, shown in enumerate(pictures):
        shown[(x - 30 - i) ** 2 + (y - 64) ** 2 < 400] = 200  # a ball rolls through the middle
    assert picture.still_bars(view(pictures)) < 0.05
