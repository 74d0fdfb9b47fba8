"""``shard.py clips --output URL --work DIR``: the set is made in the folder, then uploaded, whole or resumable."""

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from data_tools.shard import main
from mmldm_scale.shards.reader import ShardSet
from mmldm_scale.shards.remote import remote, remote_folder
from mmldm_scale.shards.remote.cache import Cache

URL = "memory://bucket/clips"
Cut = Callable[..., int]


@pytest.fixture
def bucket(monkeypatch) -> Iterator[fsspec.AbstractFileSystem]:
    """The objects of memory://, without pauses before retries."""
    monkeypatch.setattr(remote, "_sleep", lambda seconds: None)
    yield (store := fsspec.filesystem("memory"))
    store.store.clear()
    store.pseudo_dirs[:] = [""]


@pytest.fixture
def cut(good_videos: Path, overrides: list[str], tmp_path: Path) -> Cut:
    def run(*options: str, url: str = URL, work: str = "work") -> int:
        place = ["--output", url, "--work", str(tmp_path / work), "--workers", "0"]
        return main(["clips", "--input", str(good_videos), *place, *overrides, *options])

    return run


def objects(bucket: fsspec.AbstractFileSystem) -> dict[str, bytes]:
    return {path.removeprefix("/bucket/clips/"): bucket.cat_file(path) for path in bucket.find("/bucket")}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def puts(bucket, monkeypatch) -> list[str]:
    """The names of the objects that are uploaded, in order."""
    names: list[str] = []
    put = remote_folder.RemoteFolder.put

    def noted(self, file: Path, name: str) -> None:
        names.append(name)
        put(self, file, name)

    monkeypatch.setattr(remote_folder.RemoteFolder, "put", noted)
    return names


def test_a_url_gets_the_set_manifest_last(bucket, cut: Cut, puts, tmp_path: Path, capsys) -> None:
    assert cut() == 0
    assert f"{URL}: 15 clips in 4 shards, as in {tmp_path / 'work'}\n" in capsys.readouterr().out
    assert objects(bucket) == files(tmp_path / "work")
    shards = [f"shard-{number:06d}.{suffix}" for number in range(4) for suffix in ("tar", "json")]
    assert puts == ["plan.json", *shards, "dropped.jsonl", "manifest.json"]
    far = ShardSet(URL, "clips", Cache(tmp_path / "cache", 10**9))
    assert far[14].key == ShardSet(tmp_path / "work")[14].key


def test_the_same_command_uploads_only_what_is_missing(bucket, cut: Cut, puts, tmp_path: Path) -> None:
    assert cut() == 0
    bucket.pipe_file(f"{URL}/shard-000001.tar", b"cut short")
    bucket.rm_file(f"{URL}/shard-000002.json")
    bucket.pipe_file(f"{URL}/shard-000003.json", bucket.cat_file(f"{URL}/shard-000003.json")[::-1])
    bucket.rm_file(f"{URL}/manifest.json")
    puts.clear()
    assert cut() == 0
    again = [f"shard-00000{number}.{suffix}" for number in (1, 2, 3) for suffix in ("tar", "json")]
    assert puts == [*[name for name in again if name != "shard-000001.json"], "manifest.json"]
    assert objects(bucket) == files(tmp_path / "work")


def test_a_store_that_fails_is_tried_again_and_then_resumed(
    bucket, cut: Cut, tmp_path: Path, capsys, monkeypatch
) -> None:
    real, calls = bucket.put_file, []

    def faulty(source: str, path: str) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise ConnectionResetError("reset by\npeer")  # passes
        if path.endswith("shard-000002.tar"):
            raise TimeoutError("no answer")
        real(source, path)

    monkeypatch.setattr(bucket, "put_file", faulty)
    assert cut() == 74
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"shard.py: {URL}/shard-000002.tar: cannot be used: TimeoutError: no answer (tried 4 times)"
    )
    assert "manifest.json" not in objects(bucket)
    monkeypatch.setattr(bucket, "put_file", real)
    assert cut() == 0
    assert objects(bucket) == files(tmp_path / "work")


def test_what_cannot_work_is_refused_before_anything_is_made(bucket, cut: Cut, tmp_path: Path, capsys) -> None:
    bucket.pipe_file("memory://full/clips/a.txt", b"mine")
    assert cut(url="memory://full/clips") == 2
    assert (
        "memory://full/clips: holds other files (a.txt, …); give a URL with nothing below\n" in capsys.readouterr().err
    )
    assert cut(url="nothing://x") == 2
    assert "nothing://x: Protocol not known" in capsys.readouterr().err
    assert main(["clips", "--input", "x", "--output", URL]) == 2
    assert f"--output {URL}: needs --work DIR" in capsys.readouterr().err
    assert main(["clips", "--input", "x", "--output", "here", "--work", "there"]) == 2
    assert "--work there: only with a URL as --output, not with here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert cut("stride=4") == 0
    capsys.readouterr()
    assert cut(work="other") == 2
    assert f"{URL}: holds a set that was not made in {tmp_path / 'other'}" in capsys.readouterr().err


def test_a_store_without_permission_is_one_line(bucket, cut: Cut, capsys, monkeypatch) -> None:
    def refuse(path: str, value: bytes) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(bucket, "pipe_file", refuse)
    assert cut() == 2
    error = capsys.readouterr().err
    assert error.endswith(".tmp: cannot be used: PermissionError: Access Denied\n")
    assert error.count("\n") == 1


def test_a_tar_that_was_damaged_is_not_uploaded(bucket, cut: Cut, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(bucket, "put_file", None)
    assert cut() == 74  # the set is made
    monkeypatch.undo()
    tar = tmp_path / "work/shard-000001.tar"
    content = bytearray(tar.read_bytes())
    content[1000] ^= 1
    tar.write_bytes(content)
    assert cut() == 2
    assert f"{tar}: differs from its sha256; repair the set in {tmp_path / 'work'} first" in capsys.readouterr().err
