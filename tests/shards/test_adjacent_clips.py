import json
from pathlib import Path

import pytest

from mmldm_scale.config import MediaConfig
from mmldm_scale.shards.adjacent_clips import (
    distant_indices,
    following_index,
    is_adjacent,
    is_distant,
    preceding_index,
    video_of,
)
from mmldm_scale.shards.reader import Sample, ShardSet
from tests.support.datasets.latent_sets import write_windows

MEDIA = MediaConfig(frames=4, fps=10, size=64)


def sample(key: str, **meta: object) -> Sample:
    return Sample(key, {"json": memoryview(json.dumps(meta).encode())})


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_the_clip_before_is_found_by_keys_across_shards_and_not_across_videos(tmp_path: Path, stride, size):
    windows = [(video, start) for video in ("a", "a-000004", "b") for start in range(0, 17, stride)]
    shards = ShardSet(write_windows(tmp_path / "set", windows, MEDIA, size))
    for index, (video, start) in enumerate(windows):
        found = preceding_index(shards, index)
        assert (None if found is None else windows[found]) == ((video, start - 4) if start >= 4 else None)
        found = following_index(shards, index)
        assert (None if found is None else windows[found]) == ((video, start + 4) if start <= 12 else None)
        distant, most = distant_indices(shards, index)
        assert [windows[i] for i in distant] == [(v, s) for v, s in windows if v == video and abs(s - start) >= 2]
        assert most == sum(s >= 2 for s in range(0, 17, stride))  # of the first window
        assert video_of(shards.key(index)) == video


def test_a_window_that_was_dropped_is_no_clip_before(tmp_path: Path):
    windows = [("a", start) for start in (0, 1, 2, 3, 5, 6, 7, 8, 9, 12)]
    shards = ShardSet(write_windows(tmp_path / "set", windows, MEDIA, 4))
    found = [preceding_index(shards, index) for index in range(len(windows))]
    assert [None if i is None else windows[i][1] for i in found] == [None] * 4 + [1, 2, 3, None, 5, 8]


def test_keys_of_another_make_have_no_clip_before(tmp_path: Path):
    shards = ShardSet(write_windows(tmp_path / "set", [("a", 0), ("a", 4)], MEDIA, 2, key="{video}_{start}"))
    assert [preceding_index(shards, index) for index in range(2)] == [None, None]
    assert [following_index(shards, index) for index in range(2)] == [None, None]
    assert distant_indices(shards, 0) == ([], 0)
    assert video_of(shards.key(1)) == "a_4"


def test_of_joined_sets_with_the_same_keys_the_nearest_is_taken(tmp_path: Path):
    windows = [("a", start) for start in (0, 4, 8)] * 2
    shards = ShardSet(write_windows(tmp_path / "set", windows, MEDIA, 3))
    assert [preceding_index(shards, index) for index in range(6)] == [None, 0, 1, None, 3, 4]
    assert distant_indices(shards, 1) == ([0, 3, 2, 5], 4)  # of both: their paths tell which are of this video


def test_a_window_apart_from_all_others_may_have_the_most_distant_ones(tmp_path: Path):
    shards = ShardSet(write_windows(tmp_path / "set", [("a", start) for start in (0, 1, 5, 9, 10)], MEDIA, 50))
    assert [len(distant_indices(shards, index)[0]) for index in range(5)] == [3, 3, 4, 3, 3]
    assert {distant_indices(shards, index)[1] for index in range(5)} == {4}


def test_meta_says_whether_one_clip_follows_another():
    here, there = {"path": "a.mp4", "start": 3.4}, {"path": "a.mp4", "start": 3.0}
    assert is_adjacent(sample("x", **here), sample("y", **there), MEDIA)
    for changed in ({"path": "b.mp4"}, {"start": 3.06}, {"start": 2.94}, {"start": None}, {"path": None}):
        assert not is_adjacent(sample("x", **here), sample("y", **there | changed), MEDIA)
    assert is_adjacent(sample("x", **here), sample("y", **there | {"start": 3.04}), MEDIA)  # half a frame is 0.05 s
    assert not is_adjacent(sample("x"), sample("y"), MEDIA)


def test_meta_says_whether_a_clip_is_half_a_clip_away():
    here = {"path": "a.mp4", "start": 3.4}
    for start, expected in ((3.2, True), (3.6, True), (9.0, True), (3.3, False), (3.5, False), (3.4, False)):
        assert is_distant(sample("x", **here), sample("y", path="a.mp4", start=start), MEDIA) == expected
    assert not is_distant(sample("x", **here), sample("y", path="b.mp4", start=9.0), MEDIA)
    assert not is_distant(sample("x", **here), sample("y", path="a.mp4"), MEDIA)
