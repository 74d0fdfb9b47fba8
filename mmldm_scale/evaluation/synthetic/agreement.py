"""What picture and sound of one clip of the procedural corpus say of each other; no truth is needed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.synthetic.picture import SMALLEST, SeenHit, picture_class, picture_hits
from mmldm_scale.evaluation.synthetic.sound import HeardHit, sound_class, sound_hits

TOLERANCE = 0.1  # seconds between a hit in the picture and its sound, at most: one frame of the corpus
FARTHEST = 0.3  # seconds: the largest lag of a clip's sound that is looked for
LAG_STEP = 0.01  # seconds
SAME_PITCH = 0.07  # octaves, less than a semitone: the difference between two blows on one block at most
NEAR = 0.08  # seconds by which a pair may differ from the lag of its clip
LATENESS = 0.25  # pairs that a lag of 100 ms has to gain over none
FITTING = 0.5  # pairs that two successive pitches count for, if they go as the picture says, or against if not
BESIDE = 0.1  # widths of the picture between two places that are different
HIGHER_TO_THE_RIGHT = {"bell": -1, "blocks": 1}  # -1: higher to the left; ball and rain have no such order

# Name, unit and better direction of the numbers of a clip.
VALUES = (
    ("sync_error", "ms", "lower"),  # median time between the hits in the picture and their sounds
    ("hits_found", "", "higher"),  # share of the hits in the picture that have a sound within 0.1 s
    ("hits_invented", "", "lower"),  # share of the sounds that have no hit within 0.1 s
    ("class_agreement", "", "higher"),  # 1 if picture and sound are of the same class, else 0
    ("pitch_match", "", "higher"),  # bells and blocks: share of the steps from hit to hit whose pitch goes as it should
)
Pair = tuple[SeenHit, HeardHit]


@dataclass(frozen=True)
class HitAgreement:
    """What is seen and heard in one clip.

    Attributes:
        seen_class, heard_class: of the picture and of the sound; the latter None without any onset.
        seen: number of hits in the picture.
        heard: number of onsets at times of which the picture shows something.
        offsets: seconds by which each paired onset comes after its hit in the picture, (pairs,) float64.
        found: number of pairs that are no more than ``TOLERANCE`` apart.
        steps, right_steps: number of steps from one hit in the picture to the next, of bells and blocks, and of those
            steps whose two sounds are found and rise, fall or stay in pitch as the corpus' do.
    """

    seen_class: str
    heard_class: str | None
    seen: int
    heard: int
    offsets: np.ndarray
    found: int
    steps: int
    right_steps: int

    def values(self) -> dict[str, float]:
        """Return the clip's number for each of :data:`VALUES`, NaN where there is none."""
        error = 1000 * float(np.median(np.abs(self.offsets))) if len(self.offsets) else math.nan
        return {
            "sync_error": error,
            "hits_found": self.found / self.seen if self.seen else math.nan,
            "hits_invented": 1 - self.found / self.heard if self.heard else math.nan,
            "class_agreement": float(self.seen_class == self.heard_class),
            "pitch_match": self.right_steps / self.steps if self.steps else math.nan,
        }


def hit_agreement(frames: np.ndarray, frame_rate: float, waveform: np.ndarray, sample_rate: int) -> HitAgreement:
    """Return what (F, H, W, 3) uint8 frames and the (N,) waveform say of each other.

    Frame i is the picture in the middle of its time, (i + 0.5) / frame_rate seconds, as clips are cut.
    """
    kind = picture_class(frames)
    seen, heard = picture_hits(frames, frame_rate, kind), sound_hits(waveform, sample_rate)
    pairs = pair_hits(seen, heard, kind)
    offsets = np.array([sound.time - hit.time for hit, sound in pairs])
    found = {hit: (hit, sound) for hit, sound in pairs if abs(sound.time - hit.time) <= TOLERANCE}
    met = {sound.time for _, sound in found.values()}
    begin, end = 0.5 / frame_rate, (len(frames) - 0.5) / frame_rate  # of what the frames show
    shown = [sound for sound in heard if begin <= sound.time <= end or sound.time in met]
    steps = list(pairwise(seen)) if kind in HIGHER_TO_THE_RIGHT else []
    right = sum(a in found and b in found and _fits(found[a], found[b], kind) for a, b in steps)
    return HitAgreement(kind, sound_class(heard), len(seen), len(shown), offsets, len(met), len(steps), right)


def record_agreement(record: ClipRecord) -> HitAgreement:
    """Return what picture and sound of ``record`` say of each other.

    Raises:
        UserError: it has no frames, no sound, or pictures too small.
    """
    frames, waveform = record.clip.frames, record.clip.waveform
    if not len(frames) or not len(waveform):
        raise UserError(f"{record.name}: has no {'sound' if len(frames) else 'frames'}; the benchmark needs both")
    if min(frames.shape[1:3]) < SMALLEST:
        raise UserError(f"{record.name}: {min(frames.shape[1:3])} pixels; must be at least {SMALLEST}")
    return hit_agreement(frames, record.frame_rate, waveform, record.sample_rate)


def pair_hits(seen: Sequence[SeenHit], heard: Sequence[HeardHit], kind: str) -> list[Pair]:
    """Return pairs of a hit and its sound, in order of time, each in one pair at most.

    Hits follow each other as closely as 0.15 s, so that the nearest sound is not always that of the hit. So one lag is
    taken for the whole clip: the one at which most sounds meet a hit, and at which the pitches of bells and blocks rise
    and fall as the picture says.
    """
    best: list[Pair] = []
    best_score = -np.inf
    for lag in sorted(np.arange(-FARTHEST, FARTHEST + LAG_STEP / 2, LAG_STEP), key=abs):  # the smallest of equals
        pairs = _pairs_at(seen, heard, float(lag))
        misfits = [((sound.time - hit.time - lag) / NEAR) ** 2 for hit, sound in pairs]
        score = len(pairs) - sum(misfits)
        if kind in HIGHER_TO_THE_RIGHT:
            score += sum(FITTING if _fits(*both, kind) else -FITTING for both in pairwise(pairs))
        score -= LATENESS * abs(lag) / 0.1
        if score > best_score:
            best, best_score = pairs, score
    return best


def _pairs_at(seen: Sequence[SeenHit], heard: Sequence[HeardHit], lag: float) -> list[Pair]:
    """Return the pairs whose sound comes ``lag`` ± ``NEAR`` seconds after the hit."""
    pairs = []
    i = j = 0
    while i < len(seen) and j < len(heard):
        difference = heard[j].time - seen[i].time - lag
        if abs(difference) <= NEAR:
            pairs.append((seen[i], heard[j]))
            i, j = i + 1, j + 1
        elif difference < 0:
            j += 1
        else:
            i += 1
    return pairs


def _fits(before: Pair, after: Pair, kind: str) -> bool:
    """Return whether the pitch of bells or blocks goes up, down or stays from one hit to the next as it should."""
    across, octaves = after[0].x - before[0].x, np.log2(after[1].pitch / before[1].pitch)
    if abs(across) <= BESIDE:
        return bool(abs(octaves) <= SAME_PITCH)
    return bool(HIGHER_TO_THE_RIGHT[kind] * across * octaves > 0 and abs(octaves) > SAME_PITCH)
