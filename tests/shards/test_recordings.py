"""The id of a sample's recording: what is the same recording, what is not, and what is not known."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmldm_scale.shards.index import ShardIndex
from mmldm_scale.shards.json_files import DamagedSet, read_json, write_json
from mmldm_scale.shards.reader import ShardSet
from mmldm_scale.shards.recordings import UNKNOWN, recording_id
from mmldm_scale.shards.verify import verify_set

YOUTUBE = {"path": "train/abc_10.mp4", "origin": "abc", "file_bytes": 5}
FILE = {"path": "cat/1.mp4", "origin": "cat/1.mp4", "file_bytes": 5}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (YOUTUBE, {"path": "test/abc_90.mp4", "origin": "abc", "file_bytes": 7}, True),
        (YOUTUBE, YOUTUBE | {"origin": "abd"}, False),
        (FILE, FILE | {"start": 3.2, "label": "x"}, True),
        (FILE, FILE | {"file_bytes": 6}, False),  # of another folder, with the same name
        (FILE, FILE | {"origin": "1.mp4"}, True),  # a name is none of a recording, nor
        (FILE, FILE | {"origin": "cat/1"}, True),  # is one without its suffix
        (FILE, FILE | {"path": "dog/1.mp4", "origin": "dog/1.mp4"}, False),
    ],
)
def test_a_recording_is_its_origin_or_else_its_file(one: dict, other: dict, same: bool) -> None:
    assert UNKNOWN not in (recording_id(one), recording_id(other))
    assert (recording_id(one) == recording_id(other)) == same


@pytest.mark.parametrize(
    "meta", [{}, {"path": "a.mp4"}, {"path": "a.mp4", "origin": "a.mp4", "file_bytes": 0}, {"path": 3, "origin": None}]
)
def test_what_does_not_tell_is_unknown(meta: dict) -> None:
    assert recording_id(meta) == UNKNOWN


def test_an_index_of_an_earlier_version_has_none(make_set, tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", "clips")
    for number in range(3):
        value = read_json(folder / f"shard-{number:06d}.json")
        del value["recordings"]
        write_json(folder / f"shard-{number:06d}.json", value)
    shards = ShardSet(folder)
    assert (len(shards.recordings), shards.unknown_recordings) == (0, 14)
    assert verify_set(folder).faults == []


@pytest.mark.parametrize("ids", [["0" * 16], ["x" * 16] * 5, "text", 3])
def test_ids_of_another_form_are_damage(ids: object, make_set, tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", "clips")
    value = read_json(folder / "shard-000000.json")
    write_json(folder / "shard-000000.json", value | {"recordings": ids})
    with pytest.raises(DamagedSet, match=r"shard-000000.json: not a shard index"):
        ShardIndex.read(folder, 0)


def test_ids_that_are_not_those_of_the_samples_are_a_fault(make_set, tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", "clips")
    value = read_json(folder / "shard-000001.json")
    write_json(folder / "shard-000001.json", value | {"recordings": [f"{7:016x}"] * 5})
    assert verify_set(folder).faults == ["shard-000001: the recordings in its index differ from those of its samples"]


def test_samples_are_found_by_their_recordings(good_set: Path) -> None:
    shards = ShardSet(good_set)
    origins = [recording_id(json.loads(bytes(shards[index].members["json"]))) for index in range(len(shards))]
    assert shards.recordings.tolist() == sorted(set(origins))
    assert shards.indices_of_recordings(np.array(origins[3:4], np.uint64)) == [2, 3]


@pytest.fixture
def good_set(tmp_path: Path) -> Path:
    from tests.support.datasets.latent_sets import write_latents

    return write_latents(tmp_path / "set", (3, 3), meta=lambda number: {"path": "x", "origin": f"r{number // 2}"})
