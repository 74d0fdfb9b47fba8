"""Attention checks: which answers pass, and which raters are excluded."""

from mmldm_scale.evaluation.rating.plan import NOISE_CLIP, SCORES, Question
from mmldm_scale.evaluation.rating.store import SCALES, Vote

MOST_FOR_NOISE = 2  # highest score of the audio and the video quality of noise by an attentive rater
MOST_FAILED = 1 / 3  # largest share of failed checks of a rater who counts
RULE = (
    "A rater who failed more than a third of the answered attention checks is excluded. A check is failed if a score "
    f"differs from the one that the page asks for, or if audio or video quality of a clip of pure noise is above "
    f"{MOST_FOR_NOISE} of {SCORES[-1]}."
)


def passes(question: Question, vote: Vote) -> bool:
    """Return whether ``vote`` passes the attention check ``question``."""
    if question.check is None:
        raise ValueError("not an attention check")
    if question.check.kind == "instruction":
        return all(scores[scale] == question.check.score for scores in vote.scores for scale in SCALES)
    noise = [scores for clip, scores in zip(question.clips, vote.scores, strict=True) if clip == NOISE_CLIP]
    return all(max(scores["audio"], scores["video"]) <= MOST_FOR_NOISE for scores in noise)


def is_excluded(answered: int, failed: int) -> bool:
    """Return whether a rater who ``failed`` of ``answered`` checks is excluded."""
    return failed > answered * MOST_FAILED
