import errno
import hashlib
import os
import shutil
import tarfile
import zlib

import pytest

from mmldm_scale.common import atomic_files
from mmldm_scale.common.errors import UserError
from mmldm_scale.shards.index import ShardIndex
from mmldm_scale.shards.json_files import DamagedSet, read_json, write_json
from mmldm_scale.shards.writer import ShardWriter

SAMPLES = {"a-0": {"00.jpg": b"x" * 700, "wav": b"y" * 512}, "b_1": {"00.jpg": b"", "wav": b"z"}}


def write(folder, number=0, meta=None):
    with ShardWriter(folder, number) as shard:
        for key, members in SAMPLES.items():
            shard.add(key, members, meta or {"label": "ünï"})
        shard.drop("c-2", "d/c.mp4", "silent", "so quiet")
        return shard.commit()


def test_a_plain_tar_holds_what_was_added(tmp_path):
    write(tmp_path)
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        found = {info.name: tar.extractfile(info).read() for info in tar}
        assert {(info.uid, info.gid, info.mtime, info.uname) for info in tar} == {(0, 0, 0, "")}
    assert list(found) == ["a-0.00.jpg", "a-0.wav", "a-0.json", "b_1.00.jpg", "b_1.wav", "b_1.json"]
    assert found["a-0.00.jpg"] == b"x" * 700
    assert found["b_1.json"] == b'{"label": "\\u00fcn\\u00ef"}'


def test_the_index_points_at_the_contents(tmp_path):
    written = write(tmp_path)
    index = ShardIndex.read(tmp_path, 0)
    data = (tmp_path / "shard-000000.tar").read_bytes()
    assert (index.bytes, index.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert index.keys == written.keys == ["a-0", "b_1"]
    assert index.members == ["00.jpg", "wav", "json"]
    places = zip(index.offsets[0], index.sizes[0], strict=True)
    assert [data[offset : offset + size] for offset, size in places][:2] == [b"x" * 700, b"y" * 512]
    assert index.spans.tolist() == [[0, index.spans[1, 0]], [index.spans[1, 0], len(data) - 1024]]
    assert index.dropped == [{"key": "c-2", "path": "d/c.mp4", "reason": "silent", "detail": "so quiet"}]


def test_the_same_samples_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    for file in ("shard-000000.tar", "shard-000000.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_shard_without_samples_is_an_index_without_a_tar(tmp_path):
    with ShardWriter(tmp_path, 2) as shard:
        shard.drop("a-000000", "a.mp4", "silent", "")
        shard.commit()
    index = ShardIndex.read(tmp_path, 2)
    assert (len(index), index.bytes, len(index.dropped)) == (0, 0, 1)
    index.check_tar(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["shard-000002.json"]


def test_nothing_stays_of_what_was_not_committed(tmp_path):
    with ShardWriter(tmp_path, 0) as shard:
        shard.add("a", {"wav": b"1"}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["a.b", "a/b", "../a", "", "a b", "é", "k" * 81])
def test_keys_that_a_reader_would_trip_over_are_refused(tmp_path, key):
    with ShardWriter(tmp_path, 0) as shard, pytest.raises(ValueError, match="do not match"):
        shard.add(key, {"wav": b""}, {})


def test_a_key_twice_or_other_members_are_refused(tmp_path):
    with ShardWriter(tmp_path, 0) as shard:
        shard.add("a", {"wav": b""}, {})
        with pytest.raises(ValueError, match="repeats"):
            shard.add("a", {"wav": b""}, {})
        with pytest.raises(ValueError, match="earlier samples"):
            shard.add("b", {"npy": b""}, {})


@pytest.mark.parametrize(("code", "says"), [("ENOSPC", "the disk is full"), ("EDQUOT", "the disk quota is used up")])
@pytest.mark.parametrize(
    ("step", "fails_at"), [("_write", 1), ("_write", 2), ("_write", 4), ("_sync", 1), ("_sync", 3), ("_rename", 2)]
)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_done(tmp_path, monkeypatch, step, fails_at, code, says):
    write(tmp_path, number=7)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real, calls = getattr(atomic_files, step), []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == fails_at:
            raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
        real(*arguments)

    monkeypatch.setattr(atomic_files, step, full)
    with pytest.raises(UserError, match=rf"shard-000000\.(tar|json): {says} after [\d,]+ bytes") as error:
        write(tmp_path)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(atomic_files, step, real)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after == before


def fill(shard):
    for number in range(100):
        shard.add(f"a-{number}", {"wav": bytes(5000)}, {})
    shard.commit()


def test_a_tar_that_another_process_has_made_meanwhile_stays(tmp_path, monkeypatch):
    """This one was taken for dead before its index had its name, and what it wrote aside was removed."""
    rename = atomic_files._rename

    def remove_first(old, new):
        if new.suffix == ".json":
            old.unlink()
        rename(old, new)

    monkeypatch.setattr(atomic_files, "_rename", remove_first)
    with ShardWriter(tmp_path, 0) as writer:
        writer.add("a", {"txt": b"1"}, {})
        with pytest.raises(FileNotFoundError):
            writer.commit()
    assert [path.name for path in tmp_path.iterdir()] == ["shard-000000.tar"]


def test_a_really_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=64k tmpfs {disk} 2>/dev/null"):
        pytest.skip("needs root and the right to mount a small file system")
    try:
        write(disk, number=7)
        before = sorted(path.name for path in disk.iterdir())
        with ShardWriter(disk, 0) as shard, pytest.raises(UserError, match="disk is full"):
            fill(shard)
        assert sorted(path.name for path in disk.iterdir()) == before
        assert shutil.disk_usage(disk).free > 40_000
    finally:
        os.system(f"umount {disk}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("name", "shard-000001"),
        ("keys", ["../../a", "b_1"]),
        ("keys", ["a-0", "a-0"]),
        ("keys", ["a-0"]),
        ("offsets", [[1024, 2048, 3072], [4096, 4608, 5632]]),
        ("offsets", [[512], [4096]]),
        ("sizes", [[-700, 512, 23], [0, 1, 23]]),
        ("sizes", [[7_000_000, 512, 23], [0, 1, 23]]),
        ("sizes", [["700x", 512, 23], [0, 1, 23]]),
        ("sizes", [[10**30, 512, 23], [0, 1, 23]]),
        ("crc32", [1, 2, 3]),
        ("members", ["00.jpg", "/etc/passwd", "json"]),
        ("dropped", [{"key": "c-2"}]),
        ("dropped", 7),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(tmp_path, key, value):
    write(tmp_path)
    file = tmp_path / "shard-000000.json"
    write_json(file, {**read_json(file), key: value})
    with pytest.raises(DamagedSet, match=r"shard-000000\.json: ") as error:
        ShardIndex.read(tmp_path, 0)
    assert "\n" not in str(error.value)


def test_any_change_of_an_index_is_noticed(tmp_path):
    write(tmp_path)
    file = tmp_path / "shard-000000.json"
    whole = file.read_bytes()
    for position in range(len(whole)):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(DamagedSet):
            ShardIndex.read(tmp_path, 0)


def test_json_that_is_nested_too_deeply_is_refused(tmp_path):
    deep = b'"a": ' + b"[" * 100_000
    (tmp_path / "shard-000000.json").write_bytes(b'{"checksum": "%08x",' % zlib.crc32(deep) + deep)
    with pytest.raises(DamagedSet, match="cannot be read"):
        ShardIndex.read(tmp_path, 0)
