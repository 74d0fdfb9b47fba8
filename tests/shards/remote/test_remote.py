import errno
import hashlib
import io

import fsspec
import numpy as np
import pytest

from mmldm_scale.common.errors import Outage, UserError
from mmldm_scale.shards.json_files import DamagedSet, write_json
from mmldm_scale.shards.remote import remote
from mmldm_scale.shards.remote.remote import StoredTar, download, read_checked

CONTENT = np.random.default_rng(0).bytes(20_000)
URL = "memory://remote/shard.tar"


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that were made, without making them."""
    made: list[float] = []
    monkeypatch.setattr(remote, "_sleep", made.append)
    return made


def stored(content: bytes = CONTENT, url: str = URL) -> StoredTar:
    """Store ``content`` where a tar with CONTENT should be."""
    fsspec.filesystem("memory").pipe("/remote/shard.tar", content)
    return StoredTar(url, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def arrived(tar: StoredTar) -> bytes:
    stream = io.BytesIO()
    download(tar, stream)
    return stream.getvalue()


def test_downloads_from_urls_and_paths(tmp_path, monkeypatch, pauses):
    monkeypatch.setattr(remote, "CHUNK", 4096)
    assert arrived(stored()) == CONTENT
    file = tmp_path / "with :: and #.tar"
    file.write_bytes(CONTENT)
    assert arrived(stored(url=str(file))) == CONTENT
    assert arrived(stored(url=f"file://{file.rename(tmp_path / 'plain.tar')}")) == CONTENT
    assert pauses == []


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 4096, 8192, 19_999])
def test_what_is_cut_is_noticed(cut, pauses):
    with pytest.raises(DamagedSet, match=rf"shard.tar: 20,000 bytes expected, {cut:,} found") as error:
        arrived(stored(CONTENT[:cut]))
    assert "tried 4 times" in str(error.value)
    assert pauses == [1.0, 4.0, 16.0]


def test_any_flipped_bit_is_noticed(pauses):
    random = np.random.default_rng(0)
    for position in random.integers(0, len(CONTENT), 200).tolist():
        damaged = bytearray(CONTENT)
        damaged[position] ^= 1 << int(random.integers(8))
        with pytest.raises(DamagedSet, match="does not match its sha256"):
            arrived(stored(bytes(damaged)))


def test_what_is_longer_is_not_read_to_its_end(pauses, monkeypatch):
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size=-1):
            Endless.given += size
            return bytes(size)

    monkeypatch.setattr(remote, "_open", lambda url: Endless())
    with pytest.raises(DamagedSet, match="20,000 bytes expected, more found"):
        arrived(stored())
    assert Endless.given < 5 * len(CONTENT)


def test_a_passing_fault_is_tried_again(pauses, monkeypatch):
    tries = []

    def faulty(url: str) -> io.BytesIO:
        tries.append(url)
        if len(tries) == 1:
            raise TimeoutError("no answer")
        return io.BytesIO(CONTENT[:500] if len(tries) == 2 else CONTENT)

    monkeypatch.setattr(remote, "_open", faulty)
    assert arrived(stored()) == CONTENT
    assert pauses == [1.0, 4.0]


def test_a_lasting_fault_is_one_line(pauses, monkeypatch):
    def faulty(url: str) -> io.BytesIO:
        raise ConnectionResetError("connection\nreset")

    monkeypatch.setattr(remote, "_open", faulty)
    says = r"^memory://remote/shard.tar: cannot be read: ConnectionResetError: connection reset \(tried 4 times\)$"
    with pytest.raises(Outage, match=says):
        arrived(stored())


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("memory://nowhere/x.tar", "nowhere/x.tar: there is no such file"),
        ("/nowhere/x.tar", "nowhere/x.tar: there is no such file"),
        ("nothing://x.tar", "nothing://x.tar: Protocol not known"),
    ],
)
def test_what_cannot_work_is_said_at_once(url, says, pauses):
    with pytest.raises(UserError, match=says):
        arrived(stored(url=url))
    assert pauses == []


@pytest.mark.parametrize("name", ["../../etc/x", "", "0" * 63, "A" * 64])
def test_a_tar_is_named_by_nothing_but_a_sha256(name):
    with pytest.raises(DamagedSet, match="is not a sha256"):
        StoredTar(URL, 1, name)


def test_a_full_disk_is_said_at_once(tmp_path, pauses, monkeypatch):
    def full(stream, data):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(remote, "_write", full)
    says = "x.part: the disk is full; memory://remote/shard.tar needs"
    with (tmp_path / "x.part").open("wb", buffering=0) as stream, pytest.raises(UserError, match=says):
        download(stored(), stream)
    assert pauses == []


def test_json_files_are_checked(tmp_path, pauses, monkeypatch):
    write_json(tmp_path / "x.json", {"number": 1})
    whole = (tmp_path / "x.json").read_bytes()
    assert read_checked(str(tmp_path / "x.json")) == whole
    (tmp_path / "x.json").write_bytes(whole.replace(b"1}", b"2}"))
    with pytest.raises(DamagedSet, match="x.json: its content does not match its checksum"):
        read_checked(str(tmp_path / "x.json"))
    monkeypatch.setattr(remote, "JSON_LIMIT", 10)
    with pytest.raises(UserError, match="larger than 10 bytes"):
        read_checked(str(tmp_path / "x.json"))
