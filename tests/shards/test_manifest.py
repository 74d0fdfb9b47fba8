import pytest

from mmldm_scale.common.errors import UserError
from mmldm_scale.shards.json_files import DamagedSet, read_json, write_json
from mmldm_scale.shards.manifest import Manifest, differences


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_round_trip(tmp_path, make_set):
    folder = make_set(tmp_path / "set", "latents")
    manifest = Manifest.read(folder, "latents")
    text = (folder / "manifest.json").read_bytes()
    manifest.write(folder)
    assert (folder / "manifest.json").read_bytes() == text
    assert manifest.media.audio.sample_rate == 8000
    assert manifest.audio_shape == (4, 2, 2)
    assert len(manifest.statistics["video"]["std"]) == 4


def test_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder") as error:
        Manifest.read(tmp_path / "nothing")
    one_line(error)


def test_no_shard_set(tmp_path):
    with pytest.raises(UserError, match="not a shard set"):
        Manifest.read(tmp_path)


def test_an_unfinished_set(tmp_path, make_set):
    folder = make_set(tmp_path / "set", "clips")
    (folder / "manifest.json").rename(folder / "plan.json")
    with pytest.raises(UserError, match="unfinished shard set; run the command"):
        Manifest.read(folder)


def test_another_kind(tmp_path, make_set):
    with pytest.raises(UserError, match="contains clips, but latents are required"):
        Manifest.read(make_set(tmp_path / "set", "clips"), "latents")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("kind", "pickles"),
        ("samples", 13),
        ("candidates", 100),
        ("candidates", "17"),
        ("reasons", True),
        ("classes", [1]),
        ("videos", 2.5),
        ("audio_shape", [1, 2]),
        ("statistics", {"audio": {"mean": ["x"]}}),
        ("media", {}),
        ("media", {"audio": {}, "hobby": 1}),
        ("media", 3),
        ("shards", [{"name": "../../etc/passwd", "samples": 14, "bytes": 1, "sha256": ""}]),
        ("shards", 3),
        ("audio_shape", ["a"]),
        ("surprise", 1),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(tmp_path, make_set, key, value):
    file = make_set(tmp_path / "set", "latents") / "manifest.json"
    write_json(file, {**read_json(file), key: value})
    with pytest.raises(DamagedSet, match=r"manifest\.json: ") as error:
        Manifest.read(file.parent)
    one_line(error)


def test_damage_is_noticed(tmp_path, make_set):
    file = make_set(tmp_path / "set", "latents") / "manifest.json"
    whole = file.read_bytes()
    for content in (b"", b"\x80\x04", b"[1]", whole[:-3], whole + b" ", whole.replace(b'"v"', b'"w"'), b"{" + whole):
        file.write_bytes(content)
        with pytest.raises(DamagedSet, match=r"manifest\.json: ") as error:
            Manifest.read(file.parent)
        one_line(error)


def test_differences_name_nested_keys():
    left, right = {"a": {"b": 1, "c": 2}, "d": 0}, {"a": {"b": 1, "c": 3}, "e": 0}
    assert differences(left, right) == ["a.c: left 2, right 3", "d: left 0, right None", "e: left None, right 0"]
    assert differences(left, left) == []
