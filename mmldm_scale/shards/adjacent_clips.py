"""Adjacent clips: which sample of a set ends where another sample of the same video begins.

A sample's key is its video's key and the number of its first frame ("street_3-000016"), and a set holds the windows of
a video in order. :func:`preceding_index` therefore finds the preceding sample by its key, without reading any;
:func:`is_adjacent` checks the two samples' times after reading.
"""

from mmldm_scale.config import MediaConfig
from mmldm_scale.shards.reader import Sample, ShardSet


def preceding_index(shards: ShardSet, index: int) -> int | None:
    """Return the index of the sample that, by its key, ends where sample ``index`` begins; None if there is none.

    Windows of F frames begin at least one frame apart, so it is among the F samples before ``index``.
    """
    frames = shards.manifest.media.frames
    video, _, start = shards.key(index).rpartition("-")
    if not (start.isdecimal() and int(start) >= frames):
        return None
    preceding_key = f"{video}-{int(start) - frames:06d}"
    candidates = range(index - 1, max(index - frames, 0) - 1, -1)
    return next((candidate for candidate in candidates if shards.key(candidate) == preceding_key), None)


def is_adjacent(sample: Sample, earlier: Sample, media: MediaConfig) -> bool:
    """Return whether ``sample`` begins where ``earlier`` of the same video ends, to within half a frame.

    Raises:
        DamagedSample: the meta of one of them cannot be read.
    """
    path, start = sample.meta.get("path"), sample.meta.get("start")
    earlier_path, earlier_start = earlier.meta.get("path"), earlier.meta.get("start")
    if not isinstance(start, int | float) or not isinstance(earlier_start, int | float):
        return False
    if path is None or path != earlier_path:
        return False
    return abs(start - media.seconds - earlier_start) <= 0.5 / media.fps
