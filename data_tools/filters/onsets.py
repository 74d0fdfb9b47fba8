"""Onsets of picture and sound, and how many of them coincide, similar to AV-Align.

AV-Align (Yariv et al., AAAI 2024) takes the peaks of the optical flow and of the sound's onset strength, and the
intersection over union of those that meet within a frame. Here the change of the picture stands for the flow, which
would cost more than decoding does, and a frame is 0.1 s. Where there are many onsets some meet by chance; so what the
same onsets reach when one side is turned by other times is taken off for a second measure.
"""

from dataclasses import dataclass

import numpy as np

from .low_res_view import FPS, LowResView
from .picture import changes
from .sound import HOP, spectrogram

APART = 0.3  # seconds between two onsets at least
NEAR = 0.03  # seconds on both sides, or one value, in which a peak is the highest
AROUND = 1.0  # seconds on both sides whose median is what a peak has to stand out of
RISE_DB = 3.0  # by which the sound has to rise within 20 ms, in the mean over bands, above what it does around
CHANGE = 0.3  # levels by which the picture has to change in 0.1 s more than it does around: little, as in AV-Align
STANDOUT = {"picture": 1.05, "sound": 2.0}  # times what is usual around it that a peak has to reach, besides
TOLERANCE = 0.1  # seconds within which two onsets meet: one frame, as in AV-Align
FARTHEST = 0.5  # seconds: the largest delay that is looked for
TURN = 0.37  # seconds from one turn to the next, no simple part of a beat


@dataclass(frozen=True)
class Agreement:
    """How well the onsets of picture and sound coincide.

    Attributes:
        share: of the onsets, those that meet within 0.1 s: intersection over union, 0 to 1; None without any onset.
        surplus: ``share`` less its mean over turns of the sound against the picture by other times, -1 to 1; None
            without any onset, or in a stretch too short to be turned.
        offset: seconds by which the sound comes after the picture, where most onsets meet, within ±0.5 s; None where
            fewer than two do.
    """

    share: float | None
    surplus: float | None
    offset: float | None


def agreement(view: LowResView) -> Agreement:
    """Return how well the onsets of picture and sound agree in time."""
    seen, heard = picture_onsets(view), sound_onsets(view)
    share = _share(seen, heard)
    length = len(view.pictures) / FPS
    turns = np.arange(FARTHEST + TOLERANCE, length - FARTHEST, TURN)
    surplus = None
    if share is not None and len(turns):
        surplus = share - float(np.mean([_share(seen, np.sort((heard + turn) % length)) for turn in turns]))
    best = np.zeros(0)
    for delay in sorted(np.arange(-FARTHEST, FARTHEST + HOP, TOLERANCE / 2), key=abs):  # the smallest of equals
        offsets = _offsets(seen + delay, heard)
        if len(offsets) > len(best):
            best = offsets + delay
    return Agreement(share, surplus, float(np.median(best)) if len(best) > 1 else None)


def _share(seen: np.ndarray, heard: np.ndarray) -> float | None:
    """Return the share of onsets that meet, intersection over union; None if there are none."""
    pairs = len(_offsets(seen, heard))
    union = len(seen) + len(heard) - pairs
    return pairs / union if union else None


def picture_onsets(view: LowResView) -> np.ndarray:
    """Return when the picture changes suddenly, in seconds, ascending: a step of 0.1 s counts with its middle."""
    change = changes(view)
    change[[seam - 1 for seam in view.seams]] = 0
    return (_peaks(change, FPS, CHANGE, STANDOUT["picture"]) + 0.5) / FPS


def sound_onsets(view: LowResView) -> np.ndarray:
    """Return when the sound rises suddenly, in seconds, ascending."""
    levels = spectrogram(view, 200.0, 8000.0, 12)  # (C, 12): each wide enough that noise hardly wavers in it
    rise = np.zeros(len(levels))
    rise[2:] = np.maximum(levels[2:] - levels[:-2], 0).mean(1)
    for seam in (0, *view.seams):  # where sound begins or goes on elsewhere is no onset
        at = round(seam / FPS / HOP)
        rise[max(0, at - 3) : at + 4] = 0
    return _peaks(rise, round(1 / HOP), RISE_DB, STANDOUT["sound"]) * HOP


def _peaks(curve: np.ndarray, rate: int, height: float, standout: float) -> np.ndarray:
    """Return where ``curve`` (``rate`` a second) peaks: ``height`` above, and ``standout`` times, its median around.

    What follows a peak within 0.3 s belongs to it: a flash also ends, and a blow rings.
    """
    around, near = round(AROUND * rate), max(1, round(NEAR * rate))
    padded = np.pad(curve, around, mode="reflect" if len(curve) > around else "edge")
    usual = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * around + 1), axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(curve, near, constant_values=-np.inf), 2 * near + 1)
    highest = np.argmax(windows, axis=1) == near
    peaks: list[int] = []
    for peak in np.flatnonzero(highest & (curve >= np.maximum(usual + height, standout * usual))):
        if not peaks or peak - peaks[-1] >= APART * rate:
            peaks.append(int(peak))
    return np.array(peaks, int)


def _offsets(seen: np.ndarray, heard: np.ndarray) -> np.ndarray:
    """Return heard - seen (seconds) of each pair that lies within the tolerance; each onset is in one pair at most."""
    differences = []
    i = j = 0
    while i < len(seen) and j < len(heard):
        difference = heard[j] - seen[i]
        if abs(difference) <= TOLERANCE + 1e-9:
            differences.append(difference)
            i, j = i + 1, j + 1
        elif difference < 0:
            j += 1
        else:
            i += 1
    return np.array(differences)
