"""Measures of the picture.

A *step* is from one picture of a :class:`LowResView` to the next, 0.1 s later; levels of luma go from 0 to 255.
"""

import numpy as np

from .low_res_view import FPS, LowResView

BLACK_LEVEL = 26  # levels, a tenth of the range: a darker pixel is black (as in FFmpeg's blackdetect)
BLACK_PIXELS = 0.98  # share of black pixels from which a picture is black (likewise)
FROZEN_CHANGE = 0.255  # levels, -60 dB: mean change below which a step shows no change (FFmpeg's freezedetect)
FROZEN_STEPS = 5  # in a row from which the picture is frozen: videos of 3 fps and more are not
CUT_CHANGE = 18.0  # levels: a cut changes the picture by so much more than motion does
DARK_LEVEL = 16  # levels: mean below which a row at the border may be a black bar
DARK_TIME = 0.95  # share of the pictures in which it is that dark
STILL_CHANGE = 0.5  # levels: mean change a step below which a row counts as still
EDGE_CHANGE = 8  # levels from one side of a bar's edge to the other
EDGE_LENGTH = 0.9  # share of the picture's width along which a bar's edge is that strong
BLUR_TAPS = 9  # pixels of the box filter of the blur measure


def changes(view: LowResView) -> np.ndarray:
    """Return the mean absolute change of luma (levels) at each of the T - 1 steps, (T - 1,) float64."""
    return _change(view.pictures[:-1], view.pictures[1:])


def black_fraction(view: LowResView) -> float:
    """Return the share (0 to 1) of black pictures: at least 98 % of the pixels are darker than a tenth of white."""
    black = (view.pictures < BLACK_LEVEL).mean((1, 2))  # (T,)
    return float((black >= BLACK_PIXELS).mean())


def frozen_fraction(view: LowResView) -> float:
    """Return the share (0 to 1) of steps within still spells: half a second or more with a change below -60 dB."""
    still = changes(view) < FROZEN_CHANGE
    edges = np.flatnonzero(np.diff(still, prepend=False, append=False))  # where spells begin and end, in turns
    spells = edges[1::2] - edges[::2]
    return float(spells[spells >= FROZEN_STEPS].sum() / len(still))


def cuts(view: LowResView) -> np.ndarray:
    """Return the numbers of the pictures that begin a new scene, ascending.

    A cut changes the picture by 18 levels more than the step before did, and for good: a flash, after
    which the old picture is back, is none.
    """
    change = changes(view)
    before = np.concatenate([[0.0], change[:-1]])
    lasting = np.concatenate([_change(view.pictures[:-2], view.pictures[2:]), change[-1:]])  # one picture further on
    jump = np.minimum(change, lasting) - before >= CUT_CHANGE
    numbers = np.flatnonzero(jump) + 1
    return numbers[~np.isin(numbers, view.seams)]


def cuts_per_minute(view: LowResView) -> float:
    """Return the number of cuts (see :func:`cuts`) per minute."""
    return 60 * FPS * len(cuts(view)) / len(view.pictures)


def motion(view: LowResView) -> float:
    """Return the mean change of luma (levels) in a step of 0.1 s, cuts and what was left out between not counted."""
    change = changes(view)
    counted = np.delete(change, [number - 1 for number in (*cuts(view), *view.seams)])
    return float(counted.mean()) if len(counted) else 0.0


def sharpness(view: LowResView) -> float | None:
    """Return the median over the detailed pictures of 1 - blur, 0 (smeared) to 1 (as sharp as pixels allow).

    Blur is Crété-Roffet's measure (The Blur Effect, SPIE 2007): how much of the change between neighbouring pixels
    survives a box filter of 9 pixels, along the direction that is worse. It does not depend on contrast. None where
    no picture shows anything.
    """
    sharp = [1 - blur for blur in map(_blur, view.details) if blur is not None]
    return float(np.median(sharp)) if sharp else None


def letterbox(view: LowResView) -> float:
    """Return the share (0 to 1) of the picture's area that black bars along its borders take."""
    top, bottom = _dark_rows(view.pictures)
    left, right = _dark_rows(view.pictures.transpose(0, 2, 1))
    return _area(view, top, bottom, left, right)


def still_bars(view: LowResView) -> float:
    """Return the share (0 to 1) of the area of black bars and of bars of any kind that stand still, text on them too.

    Such a bar is a strip along a border in which nothing moves, and which ends in a straight edge over nine tenths of
    the picture's width or height. In a picture that is frozen as a whole only black bars count.
    """
    top, bottom = _still_rows(view.pictures)
    left, right = _still_rows(view.pictures.transpose(0, 2, 1))
    return max(letterbox(view), _area(view, top, bottom, left, right))


def _change(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the mean absolute difference of each pair of (N, H, W) uint8 pictures, (N,) float64."""
    difference = np.maximum(first, second) - np.minimum(first, second)  # (N, H, W) uint8
    return difference.mean((1, 2))


def _blur(picture: np.ndarray) -> float | None:
    """Return the blur (0 to 1) of one (H, W) uint8 picture, or None if it is flat."""
    worst = None
    for image in (picture.astype(np.float32), picture.T.astype(np.float32)):
        change = np.abs(np.diff(image, axis=1))
        total = float(change.sum())
        if total < image.size:  # less than a level a pixel: nothing is shown
            continue
        padded = np.pad(image, ((0, 0), (BLUR_TAPS // 2 + 1, BLUR_TAPS // 2)), mode="edge")
        sums = np.cumsum(padded, axis=1)
        smooth = (sums[:, BLUR_TAPS:] - sums[:, :-BLUR_TAPS]) / BLUR_TAPS  # (H, W)
        lost = np.maximum(0, change - np.abs(np.diff(smooth, axis=1)))
        blur = 1 - float(lost.sum()) / total
        worst = blur if worst is None else max(worst, blur)
    return worst


def _dark_rows(pictures: np.ndarray) -> tuple[int, int]:
    """Return how many rows at the top and at the bottom of (T, H, W) pictures are dark nearly all the time."""
    dark = (pictures.mean(2) < DARK_LEVEL).mean(0) >= DARK_TIME  # (H,)
    if dark.all():
        return len(dark), 0
    return int(np.argmin(dark)), int(np.argmin(dark[::-1]))


def _still_rows(pictures: np.ndarray) -> tuple[int, int]:
    """Return how many rows at the top and at the bottom of (T, H, W) pictures make up bars that stand still."""
    difference = np.maximum(pictures[1:], pictures[:-1]) - np.minimum(pictures[1:], pictures[:-1])
    still = difference.mean((0, 2)) < STILL_CHANGE  # (H,)
    if still.all():
        return 0, 0
    mean = pictures.mean(0)  # (H, W)
    return _still_bar(still, mean), _still_bar(still[::-1], mean[::-1])


def _still_bar(still: np.ndarray, mean: np.ndarray) -> int:
    """Return the height of the bar at the top: the last straight edge within the still rows there, at most half way."""
    rows = min(int(np.argmin(still)), len(still) // 2)
    edge = (np.abs(mean[2 : rows + 2] - mean[:rows]) >= EDGE_CHANGE).mean(1) >= EDGE_LENGTH  # over row r + 1
    return int(np.flatnonzero(edge)[-1]) + 1 if edge.any() else 0


def _area(view: LowResView, top: int, bottom: int, left: int, right: int) -> float:
    height, width = view.pictures.shape[1:]
    return 1 - (height - top - bottom) * (width - left - right) / (height * width)
