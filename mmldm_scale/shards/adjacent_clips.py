"""Clips that follow one another in a video: which sample of a set ends where another one begins.

A sample's key is its video's with the number of its first frame ("street_3-000016"), and a set holds a video's windows
in their order. So the one before is found by keys alone, and reading it then shows whether it is.
"""

from mmldm_scale.config import MediaConfig
from mmldm_scale.shards.reader import Sample, ShardSet


def before(shards: ShardSet, index: int) -> int | None:
    """Return the index of the sample that, by its key, ends where sample ``index`` begins; None if there is none.

    A window of F frames begins at least a frame after the last, so that it is among the F samples before.
    """
    frames = shards.manifest.media.frames
    video, _, start = shards.key(index).rpartition("-")
    if not (start.isdecimal() and int(start) >= frames):
        return None
    wanted = f"{video}-{int(start) - frames:06d}"
    places = range(index - 1, max(index - frames, 0) - 1, -1)
    return next((place for place in places if shards.key(place) == wanted), None)


def follows(sample: Sample, earlier: Sample, media: MediaConfig) -> bool:
    """Return whether ``sample`` begins where ``earlier`` of the same video ends, to within half a frame.

    Raises:
        DamagedSample: the meta of one of them cannot be read.
    """
    here, there = ((one.meta.get("path"), one.meta.get("start")) for one in (sample, earlier))
    numbers = all(isinstance(start, int | float) for _, start in (here, there))
    if not numbers or here[0] is None or here[0] != there[0]:
        return False
    return abs(here[1] - media.seconds - there[1]) <= 0.5 / media.fps
