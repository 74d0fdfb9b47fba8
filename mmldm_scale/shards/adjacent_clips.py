"""Clips of one video: which sample of a set ends where another begins, and which lie at another time.

A sample's key is its video's key and the number of its first frame ("street_3-000016"). :func:`preceding_index`,
:func:`following_index` and :func:`distant_indices` therefore find the others of a video by their keys, without reading
any, in whatever order the set holds them. :func:`is_adjacent` and :func:`is_distant` check the two samples' paths and
times after reading, since sets that were joined may use one key for two videos.
"""

import numpy as np

from mmldm_scale.config import MediaConfig
from mmldm_scale.shards.reader import Sample, ShardSet


def preceding_index(shards: ShardSet, index: int) -> int | None:
    """Return the index of the sample that, by its key, ends where sample ``index`` begins; None if there is none.

    If several samples have that key, it is the one nearest to ``index`` in the set.
    """
    return _neighbour(shards, index, -shards.manifest.media.frames)


def following_index(shards: ShardSet, index: int) -> int | None:
    """Return the index of the sample that, by its key, begins where sample ``index`` ends; else as the above."""
    return _neighbour(shards, index, shards.manifest.media.frames)


def _neighbour(shards: ShardSet, index: int, frames: int) -> int | None:
    """Return the index of the sample of the same video that begins ``frames`` later, nearest to ``index``; or None."""
    window = _window(shards.key(index))
    if window is None or window[1] + frames < 0:
        return None
    video, start = window
    candidates = shards.indices_with_key(f"{video}-{start + frames:06d}")
    return min(candidates, key=lambda candidate: abs(candidate - index), default=None)


def distant_indices(shards: ShardSet, index: int) -> tuple[list[int], int]:
    """Return which samples of the video of sample ``index`` are, by their keys, half a clip away from it.

    They begin at least half a clip before or after it, so that at most half of their frames are the same; clips that
    overlap by more are too alike.

    Returns:
        Their indices, in the order of their keys; and the largest number of such samples that any sample of the video
        has.
    """
    frames, window = shards.manifest.media.frames, _window(shards.key(index))
    if window is None:
        return [], 0
    video, start = window
    places = []  # (index, first frame) of the video's samples
    for candidate in shards.indices_with_prefix(f"{video}-"):
        other = _window(shards.key(candidate))  # of another video if that one's key begins with this one's
        if other is not None and other[0] == video:
            places.append((candidate, other[1]))
    apart = -(-frames // 2)  # frames
    starts = np.sort([first for _, first in places])  # (n,)
    before = np.searchsorted(starts, starts - apart, side="right")  # (n,) for each, how many are so much earlier
    after = len(starts) - np.searchsorted(starts, starts + apart)
    return [candidate for candidate, first in places if abs(first - start) >= apart], int((before + after).max())


def video_of(key: str) -> str:
    """Return the key of the video of the sample with ``key``; ``key`` itself if it is of another make."""
    window = _window(key)
    return key if window is None else window[0]


def _window(key: str) -> tuple[str, int] | None:
    """Return the video's key and the first frame in a sample's ``key``; None if the key is of another make."""
    video, _, start = key.rpartition("-")
    return (video, int(start)) if start.isdecimal() else None


def is_adjacent(sample: Sample, earlier: Sample, media: MediaConfig) -> bool:
    """Return whether ``sample`` begins where ``earlier`` of the same video ends, to within half a frame.

    Raises:
        DamagedSample: the meta of one of them cannot be read.
    """
    apart = _seconds_apart(sample, earlier)
    return apart is not None and abs(apart - media.seconds) <= 0.5 / media.fps


def is_distant(sample: Sample, other: Sample, media: MediaConfig) -> bool:
    """Return whether ``other`` is of the same video as ``sample`` and half a clip away, to within half a frame.

    Raises:
        DamagedSample: the meta of one of them cannot be read.
    """
    apart = _seconds_apart(sample, other)
    return apart is not None and abs(apart) >= media.seconds / 2 - 0.5 / media.fps


def _seconds_apart(sample: Sample, other: Sample) -> float | None:
    """Return by how many seconds ``sample`` begins after ``other``; None unless both are of one video."""
    path, start = sample.meta.get("path"), sample.meta.get("start")
    other_path, other_start = other.meta.get("path"), other.meta.get("start")
    if not isinstance(start, int | float) or not isinstance(other_start, int | float):
        return None
    return start - other_start if path is not None and path == other_path else None
