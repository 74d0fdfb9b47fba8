"""Hits and class of a clip of the procedural corpus, from its frames alone, by plain rules without any training.

Places are fractions of the picture, from its top left corner, so that the rules hold at any size of at least
``SMALLEST`` pixels. They follow how the corpus draws (``data_tools/demo/scenes.py``):

- What is hit shines: it turns white at once, and the white fades by 1/e in ``FADE`` seconds. How white the first frame
  after the hit is therefore says how long before it the hit was: this is how a time comes out finer than a frame.
- Two balls that knock each other do not shine. They would overlap, had they gone on as before.
- A drop leaves white ellipses, which grow and fade; it fell evenly before.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

SMALLEST = 32  # pixels a side
APART = 0.05  # seconds: hits closer than this count as one, as they do in the sound
FADE = 0.12  # seconds in which a shine falls to 1/e
LEAST_SHINE = 0.25  # of a full one, that the first frame after a hit has to show
LEAST_RISE = 0.1  # of a full shine, above what is left of the earlier one
LEAST_CONTRAST, LEAST_COLOUR = 0.25, 0.45  # of a ball: change from what is usual there; highest less lowest channel
SOONEST, LATEST = -0.2, 0.9  # of the time between two frames: when balls may touch, as radii are not exact
HIGHLIGHT = 1.05  # by which a ball's radius is larger than without its highlight
LEAST_RIPPLE = 0.22  # whiteness, mean over a patch of 0.1 × 0.05
LEAST_NEAR_RIPPLE = 0.4  # likewise, where an earlier ripple may have grown to
RIPPLE = (0.5, 0.25, 0.12)  # seconds, width and height that a ripple grows to at most
LEAST_WIDTH = 0.103  # of a ripple, in widths of the picture; a drop has 0.07
LEAST_DROP = 0.15  # whiteness that a drop takes away with it
USUAL_FALL = 1.6  # heights a second, of drops
TIP = 0.01  # by which the detected tip of a drop lies above the true one
GLOW = {"floor": 0.7, "wall": 1.0, "bell": 0.8, "block": 0.8}  # how white each becomes, 1: wholly


class SeenHit(NamedTuple):
    """A hit in the picture: ``time`` (seconds) and place (``x``, ``y``), fractions from the top left corner."""

    time: float
    x: float
    y: float


Ripple = tuple[int, float, float]  # its first frame, x and y


# --- class -----------------------------------------------------------------------------------------------------------

BAND = slice(0.82, 0.95)  # rows, from top to bottom: floor, background, blocks or water
# Mean saturation of the band and standard deviation of its colour over columns (0 to 1), of each class.
LOOKS = {"ball": (0.3, 0.02), "bell": (0.5, 0.01), "blocks": (0.76, 0.31), "rain": (0.79, 0.01)}


def picture_features(frames: np.ndarray) -> np.ndarray:
    """Return the two numbers of :data:`LOOKS` of (F, H, W, 3) uint8 frames."""
    height = frames.shape[1]
    band = np.median(frames[:, round(BAND.start * height) : round(BAND.stop * height)], axis=0) / 255  # (rows, W, 3)
    columns = band.mean(axis=0)  # (W, 3)
    highest = columns.max(axis=-1)
    saturation = (highest - columns.min(axis=-1)) / np.maximum(highest, 0.02)
    return np.array([saturation.mean(), columns.std(axis=0).mean()])


def picture_class(frames: np.ndarray) -> str:
    """Return the class whose look is nearest to that of (F, H, W, 3) uint8 frames."""
    features = picture_features(frames)
    return min(LOOKS, key=lambda name: float(np.square(features - LOOKS[name]).sum()))


# --- hits ------------------------------------------------------------------------------------------------------------


def picture_hits(frames: np.ndarray, frame_rate: float, kind: str) -> list[SeenHit]:
    """Return the hits that (F, H, W, 3) uint8 frames show as those of class ``kind``, in order of time.

    A hit is seen in the first frame after it; so none is found before the first frame or after the last.
    """
    return distinct(sorted(DETECTORS[kind](frames, frame_rate)))


def distinct(hits: list[SeenHit]) -> list[SeenHit]:
    """Return ``hits``, in order of time, without those less than ``APART`` after one that is kept."""
    kept: list[SeenHit] = []
    for hit in hits:
        if not kept or hit.time - kept[-1].time >= APART:
            kept.append(hit)
    return kept


def whiteness(frames: np.ndarray) -> np.ndarray:
    """Return how white each pixel is: its least channel, (F, H, W) float32 in [0, 1]."""
    return frames.min(axis=-1).astype(np.float32) / 255


def shine(white: np.ndarray, glow: float) -> np.ndarray:
    """Return how far (F, …) whiteness has gone from its usual value to that of a hit, 0 to about 1."""
    usual = np.sort(white, axis=0)[len(white) // 16]
    return np.clip((white - usual) / (glow * np.maximum(1 - usual, 0.1)), 0, 1)


def shine_hits(curve: np.ndarray, frame_rate: float) -> list[float]:
    """Return the times (seconds) at which a curve of shine, (F,), jumps up."""
    times = []
    kept = np.exp(-1 / (frame_rate * FADE))
    for frame in range(1, len(curve)):
        value, left = float(curve[frame]), float(kept * curve[frame - 1])
        if value >= LEAST_SHINE and value - left >= LEAST_RISE:
            age = min(-FADE * np.log(value), 1 / frame_rate)
            times.append((frame + 0.5) / frame_rate - age)
    return times


def _blocks(frames: np.ndarray, frame_rate: float) -> list[SeenHit]:
    """Return the hits of blocks: of each column of pixels that shines more than those beside it."""
    height, width = frames.shape[1:3]
    white = whiteness(frames[:, round(0.82 * height) : round(0.95 * height)]).mean(axis=1)  # (F, W)
    curves = smooth(shine(white, GLOW["block"]), 0.06 * width)
    highest = curves.max(axis=0)  # (W,)
    hits = []
    for x in range(width):
        near = highest[_around(x, 0.09 * width)]
        if highest[x] == near.max() and x == _around(x, 0.09 * width).start + near.argmax():
            hits += [SeenHit(time, (x + 0.5) / width, 0.7) for time in shine_hits(curves[:, x], frame_rate)]
    return hits


def _bells(frames: np.ndarray, frame_rate: float) -> list[SeenHit]:
    """Return the hits of the left and the right bell, each where its side of the picture shines most."""
    height, width = frames.shape[1:3]
    rows = slice(round(0.4 * height), round(0.75 * height))
    hits = []
    for columns in (slice(0, round(0.25 * width)), slice(round(0.75 * width), width)):
        curves = shine(whiteness(frames[:, rows, columns]), GLOW["bell"])
        curves = smooth(smooth(curves, 0.1 * width).swapaxes(1, 2), 0.1 * height).swapaxes(1, 2)
        y, x = np.unravel_index(curves.max(axis=0).argmax(), curves.shape[1:])
        place = ((columns.start + x + 0.5) / width, (rows.start + y + 0.5) / height)
        hits += [SeenHit(time, *place) for time in shine_hits(curves[:, y, x], frame_rate)]
    return hits


def _balls(frames: np.ndarray, frame_rate: float) -> list[SeenHit]:
    """Return the hits of floor, ceiling and walls, and those of the balls with each other."""
    height, width = frames.shape[1:3]
    white = whiteness(frames)
    across, down = slice(round(0.1 * width), round(0.9 * width)), slice(round(0.1 * height), round(0.8 * height))
    strip = max(1, int(0.03 * width))
    surfaces = (
        (white[:, round(0.94 * height) :, :], "floor", (0.5, 0.9)),
        (white[:, :strip, across], "wall", (0.5, 0.0)),
        (white[:, down, :strip], "wall", (0.0, 0.5)),
        (white[:, down, -strip:], "wall", (1.0, 0.5)),
    )
    hits = []
    for pixels, name, place in surfaces:
        curve = np.median(shine(pixels, GLOW[name]), axis=(1, 2))
        hits += [SeenHit(time, *place) for time in shine_hits(curve, frame_rate)]
    return hits + _knocks(frames, frame_rate)


def _knocks(frames: np.ndarray, frame_rate: float) -> list[SeenHit]:
    """Return when the two balls knock each other: had they gone on as before, or come from after, they would overlap.

    Both fall alike, so that the way from one to the other changes evenly between two hits.
    """
    places, radius = _centres(frames)  # (F, 2, 2)
    way, touch = places[:, 0] - places[:, 1], 2 * radius  # (F, 2)
    hits = []
    for frame in range(len(way) - 1):
        shares = []  # of the time from this frame to the next
        if frame > 0:
            shares += _touches(way[frame], way[frame] - way[frame - 1], touch)
        if frame + 2 < len(way):
            shares += [1 - share for share in _touches(way[frame + 1], way[frame + 1] - way[frame + 2], touch)]
        if shares:
            x, y = places[frame].mean(axis=0)
            hits.append(SeenHit((frame + 0.5 + float(np.mean(shares))) / frame_rate, float(x), float(y)))
    return hits


def _touches(way: np.ndarray, change: np.ndarray, touch: float) -> list[float]:
    """Return after what share of ``change`` ``way`` is as short as ``touch``; nothing if that is not soon."""
    square, mixed, constant = change @ change, 2 * way @ change, way @ way - touch**2
    root = mixed**2 - 4 * square * constant
    if not (root >= 0 and square > 0):  # not with NaN, either
        return []
    share = float((-mixed - np.sqrt(root)) / (2 * square))
    return [share] if SOONEST <= share <= LATEST else []


def _centres(frames: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the centres of the two balls, (F, 2, 2) as x and y, NaN where one is not seen, and their mean radius."""
    count, height, width = frames.shape[:3]
    colours = frames.astype(np.float32) / 255
    moving = np.abs(colours - np.median(colours, axis=0)).max(axis=-1) > LEAST_CONTRAST  # (F, H, W)
    vivid = colours.max(axis=-1) - colours.min(axis=-1) > LEAST_COLOUR
    inside = np.zeros((height, width), bool)  # what is neither floor nor wall
    inside[round(0.05 * height) : round(0.83 * height), round(0.05 * width) : round(0.95 * width)] = True
    frame, row, column = np.nonzero(moving & vivid & inside)
    ball = _two_colours(colours[frame, row, column])  # (n,) 0 or 1
    places, areas = np.full((count, 2, 2), np.nan), []
    for number, which in np.ndindex(count, 2):
        chosen = (frame == number) & (ball == which)
        if chosen.any():
            places[number, which] = (
                (np.median(column[chosen]) + 0.5) / width,
                (np.median(row[chosen]) + 0.5) / height,
            )
            areas.append(chosen.sum() / (height * width))
    return places, float(np.sqrt(np.median(areas) / np.pi)) * HIGHLIGHT if areas else 0.0


def _two_colours(colours: np.ndarray) -> np.ndarray:
    """Return which of two clusters each of (n, 3) colours belongs to, (n,) of 0 and 1: 2-means from distant seeds."""
    nearer = np.zeros(len(colours), int)
    if len(colours) < 2:
        return nearer
    first = colours[np.square(colours - colours.mean(axis=0)).sum(axis=1).argmax()]
    second = colours[np.square(colours - first).sum(axis=1).argmax()]
    for _ in range(8):
        away = [np.square(colours - centre).sum(axis=1) for centre in (first, second)]
        nearer = (away[1] < away[0]).astype(int)
        if nearer.all() or not nearer.any():
            break
        first, second = colours[nearer == 0].mean(axis=0), colours[nearer == 1].mean(axis=0)
    return nearer


def _drops(frames: np.ndarray, frame_rate: float) -> list[SeenHit]:
    """Return where ripples begin, at the time at which the drop, which falls evenly, gets there."""
    white = whiteness(frames)
    white = np.clip(white - np.median(white, axis=(0, 2))[None, :, None], 0, None)  # (F, H, W) above sky and water
    ripples = _new_ripples(white, frame_rate)
    tips = [_tips(white, *ripple) for ripple in ripples]
    falls = [last - before for before, last in tips if before is not None and last is not None]
    fall = float(np.median(falls)) if falls else USUAL_FALL / frame_rate  # heights a frame
    hits = []
    for (frame, x, y), (_, last) in zip(ripples, tips, strict=True):
        if last is None:
            continue
        share = 0.5 if last is None else min(max((y - last - TIP) / fall, 0.0), 1.0)  # of the time between two frames
        hits.append(SeenHit((frame - 0.5 + share) / frame_rate, x, y))
    return hits


def _new_ripples(white: np.ndarray, frame_rate: float) -> list[Ripple]:
    """Return first frame, x and y of what turns white in the lower half, stays so, and is wider than a drop."""
    height, width = white.shape[1:]
    top = round(0.45 * height)
    level = smooth(smooth(white[:, top:], 0.1 * width).swapaxes(1, 2), 0.05 * height).swapaxes(1, 2)
    ripples: list[Ripple] = []
    for frame in range(1, len(level)):
        stays = np.minimum(level[frame], 1.2 * level[frame + 1]) if frame + 1 < len(level) else level[frame]
        rise = stays - np.maximum(level[frame - 1], level[max(frame - 2, 0)])
        while rise.max() > LEAST_RIPPLE:
            y, x = (int(i) for i in np.unravel_index(rise.argmax(), rise.shape))
            columns = _around(x, 0.12 * width)
            near = white[frame, top:][_around(y, 0.04 * height), columns].max(axis=0)
            ripple = frame, (x + 0.5) / width, (top + y + 0.5) / height
            clear = rise[y, x] > LEAST_NEAR_RIPPLE or not any(
                _grown(ripple, earlier, frame_rate) for earlier in ripples
            )
            rise[_around(y, 0.1 * height), columns] = 0
            if clear and np.minimum(1, near / 0.6).sum() / width > LEAST_WIDTH:
                ripples.append(ripple)
    return ripples


def _grown(ripple: Ripple, earlier: Ripple, frame_rate: float) -> bool:
    """Return whether ``ripple`` may be a part of an ``earlier`` one that has grown."""
    seconds, width, height = RIPPLE
    recent = 0 < ripple[0] - earlier[0] <= seconds * frame_rate
    return recent and abs(ripple[1] - earlier[1]) < width and abs(ripple[2] - earlier[2]) < height


def _tips(white: np.ndarray, frame: int, x: float, y: float) -> tuple[float | None, float | None]:
    """Return how low the drop that made a ripple was two frames and one frame before it; None if it is not seen."""
    last = _tip(white, frame, frame - 1, x, y - 0.22, y + 0.03)
    before = None if last is None or frame < 2 else _tip(white, frame, frame - 2, x, last - 0.24, last - 0.08)
    return before, last


def _tip(white: np.ndarray, frame: int, earlier: int, x: float, highest: float, lowest: float) -> float | None:
    """Return the lowest y between two heights that is whiter in frame ``earlier`` than in ``frame``."""
    height, width = white.shape[1:]
    columns = _around(int(x * width), 0.03 * width)
    first = max(0, int(highest * height))
    rows = slice(first, max(first, round(lowest * height)))
    lost = (white[earlier, rows, columns] - white[frame, rows, columns]).mean(axis=1)
    if not len(lost) or lost.max() < LEAST_DROP:
        return None
    row = int(np.flatnonzero(lost >= lost.max() / 2)[-1])
    below = lost[row + 1] if row + 1 < len(lost) else 0.0
    return float(first + row + 0.5 + min((lost[row] - lost.max() / 2) / max(lost[row] - below, 1e-6), 1.0)) / height


def _around(centre: int, reach: float) -> slice:
    return slice(max(0, centre - round(reach)), centre + round(reach) + 1)


DETECTORS: dict[str, Callable[[np.ndarray, float], list[SeenHit]]] = {
    "ball": _balls,
    "bell": _bells,
    "blocks": _blocks,
    "rain": _drops,
}


def smooth(curves: np.ndarray, length: float) -> np.ndarray:
    """Return the running mean of (…, N) over ``length`` of the last axis, at least one."""
    size = max(1, round(length)) | 1
    padded = np.pad(curves, [(0, 0)] * (curves.ndim - 1) + [(size // 2, size // 2)], mode="edge")
    means: np.ndarray = np.lib.stride_tricks.sliding_window_view(padded, size, axis=-1).mean(axis=-1)
    return means
