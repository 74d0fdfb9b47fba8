import contextlib
import fcntl
import hashlib
import multiprocessing
import os
import pickle
import random
import signal
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from mmldm_scale.common.errors import UserError
from mmldm_scale.shards.json_files import DamagedSet
from mmldm_scale.shards.latents import decode_latents
from mmldm_scale.shards.reader import ShardSet
from mmldm_scale.shards.remote import cache as caches
from mmldm_scale.shards.remote import remote
from mmldm_scale.shards.remote.cache import Cache
from mmldm_scale.shards.remote.prefetch import Prefetcher
from mmldm_scale.shards.remote.remote import StoredTar

SIZE = 50_000
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "_sleep", lambda seconds: None)
    monkeypatch.setattr(caches, "ROOM_TIMEOUT", 0.0)


@pytest.fixture
def tars(tmp_path) -> list[StoredTar]:
    """Eight files that stand for tars."""
    (tmp_path / "far").mkdir()
    return [store(tmp_path / "far" / f"{number}.tar", np.random.default_rng(number).bytes(SIZE)) for number in range(8)]


def store(file: Path, content: bytes) -> StoredTar:
    file.write_bytes(content)
    return StoredTar(str(file), len(content), hashlib.sha256(content).hexdigest())


def make(tmp_path: Path, count: int) -> Cache:
    return Cache(tmp_path / "near", count * SIZE)


def kept(cache: Cache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir() if path.name not in ("lock", "sets"))


def names(tars: list[StoredTar]) -> list[str]:
    return sorted(f"{tar.sha256}.tar" for tar in tars)


def test_a_tar_is_copied_once(tmp_path, tars):
    cache = make(tmp_path, 8)
    with cache.open(tars[3]) as stream:
        assert stream.read() == Path(tars[3].url).read_bytes()
    Path(tars[3].url).unlink()
    with cache.open(tars[3]) as stream:
        assert len(stream.read()) == SIZE
    assert kept(cache) == names([tars[3]])


def test_the_least_recently_used_goes_first(tmp_path, tars):
    cache = make(tmp_path, 3)
    for number in (0, 1, 2, 0, 3):
        cache.open(tars[number]).close()
        time.sleep(0.01)  # a file system's clock is coarse
    assert kept(cache) == names([tars[0], tars[2], tars[3]])
    cache.open(tars[4]).close()
    assert kept(cache) == names([tars[0], tars[3], tars[4]])


def test_what_is_in_use_stays(tmp_path, tars):
    cache = make(tmp_path, 2)
    with cache.open(tars[0]):
        for number in (1, 2, 3):
            cache.open(tars[number]).close()
        with cache.open(tars[3]), pytest.raises(UserError, match=r"no room for the 50,000 bytes of .*4\.tar") as error:
            cache.open(tars[4])
        assert kept(cache) == names([tars[0], tars[3]])
    assert "\n" not in str(error.value)
    cache.open(tars[4]).close()
    assert kept(cache) == names([tars[3], tars[4]])


def test_what_is_on_its_way_takes_room_already(tmp_path, tars, monkeypatch):
    def copy(tar, stream):
        monkeypatch.setattr(caches, "download", download)
        with pytest.raises(UserError, match=r"no room for .*1\.tar: 50,000 of 50,000 bytes are in use"):
            cache.open(tars[1])
        download(tar, stream)

    cache, download = make(tmp_path, 1), caches.download
    monkeypatch.setattr(caches, "download", copy)
    cache.fetch(tars[0])
    assert kept(cache) == names(tars[:1])


def test_a_tar_removed_while_it_is_opened_is_fetched_again(tmp_path, tars, monkeypatch):
    cache, removed = make(tmp_path, 8), []

    def remove_then_lock(stream, kind):
        if kind == fcntl.LOCK_SH and not removed:
            removed.append(cache.folder / kept(cache)[0])
            removed[0].unlink()
        flock(stream, kind)

    flock = fcntl.flock
    cache.fetch(tars[0])
    monkeypatch.setattr(caches.fcntl, "flock", remove_then_lock)
    cache.open(tars[0]).close()
    assert kept(cache) == [removed[0].name]


def hold(cache: Cache, tar: StoredTar, ready) -> None:
    stream = cache.open(tar)
    ready.set()
    time.sleep(60)
    stream.close()


def test_a_killed_process_uses_nothing(tmp_path, tars):
    cache, ready = make(tmp_path, 1), FORK.Event()
    process = FORK.Process(target=hold, args=(cache, tars[0], ready), daemon=True)
    process.start()
    assert ready.wait(10)
    with pytest.raises(UserError, match="no room"):
        cache.open(tars[1])
    process.kill()
    process.join()
    cache.open(tars[1]).close()
    assert kept(cache) == names([tars[1]])


def test_a_process_forked_while_a_tar_is_fetched_does_not_keep_it(tmp_path, tars, monkeypatch):
    cache, children = make(tmp_path, 1), []

    def fork_then_copy(tar, stream):
        children.append(FORK.Process(target=time.sleep, args=(60,), daemon=True))
        children[-1].start()  # it has the part's descriptor, and so its lock
        download(tar, stream)

    download = caches.download
    monkeypatch.setattr(caches, "download", fork_then_copy)
    cache.fetch(tars[0])
    monkeypatch.setattr(caches, "download", download)
    user = FORK.Process(target=read_at_random, args=(cache, tars[:2], 0, 10), daemon=True)
    user.start()
    user.join(20)
    for process in (user, *children):
        process.kill()
    assert user.exitcode == 0


@pytest.mark.parametrize("damage", ["cut", "flip", "swap"])
def test_what_arrives_damaged_is_never_used(tmp_path, tars, damage):
    cache, whole = make(tmp_path, 8), Path(tars[0].url).read_bytes()
    other = {"cut": whole[:-512], "flip": bytes([whole[0] ^ 1]) + whole[1:], "swap": Path(tars[1].url).read_bytes()}
    Path(tars[0].url).write_bytes(other[damage])
    with pytest.raises(DamagedSet, match=r"0\.tar"):
        cache.open(tars[0])
    assert kept(cache) == []
    Path(tars[0].url).write_bytes(whole)
    cache.open(tars[0]).close()


def taken(cache: Cache) -> int:
    """Return the bytes that the cache takes; nobody reserves more meanwhile."""
    sizes = {}
    with (cache.folder / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in cache.folder.glob("*.*"):
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                sizes[found.st_ino] = found.st_size  # a file may be seen before and after it is renamed
    return sum(sizes.values())


def read_at_random(cache: Cache, tars: list[StoredTar], seed: int, rounds: int) -> None:
    """Open tars at random and look at what they hold and at what the cache takes."""
    order = random.Random(seed)
    for _ in range(rounds):
        tar = order.choice(tars)
        with cache.open(tar) as stream:
            assert hashlib.sha256(stream.read()).hexdigest() == tar.sha256
        assert taken(cache) <= cache.limit


def test_many_processes_share_it(tmp_path, tars, monkeypatch):
    monkeypatch.setattr(caches, "ROOM_TIMEOUT", 30.0)
    cache = make(tmp_path, 5)
    processes = [FORK.Process(target=read_at_random, args=(cache, tars, seed, 150), daemon=True) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert all(name.endswith(".tar") for name in kept(cache))
    assert len(kept(cache)) <= 5


def test_processes_killed_at_any_moment_leave_nothing_that_misleads(tmp_path, tars, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK", 4096)
    cache, moments = make(tmp_path, 3), random.Random(0)
    for seed in range(25):
        process = FORK.Process(target=read_at_random, args=(cache, tars, seed, 10**6), daemon=True)
        process.start()
        time.sleep(moments.uniform(0, 0.06))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for path in cache.folder.glob("*.tar"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
    read_at_random(cache, tars, 0, 50)
    assert all(name.endswith(".tar") for name in kept(cache))


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot be used as a cache of shards"):
        Cache(tmp_path / "file", 1)


# --- prefetching ------------------------------------------------------------------------------------------------------


def wait_for(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_fetches_ahead_in_order_what_is_wanted_now(tmp_path, tars):
    cache = make(tmp_path, 8)
    prefetcher = Prefetcher(cache)
    missing = StoredTar(str(tmp_path / "none.tar"), 1, "0" * 64)
    prefetcher.request(0, [missing, *tars[:2]])  # what fails is left to whoever reads it
    prefetcher.request(1, [tars[4]])
    wait_for(lambda: kept(cache) == names([*tars[:2], tars[4]]))
    pickle.loads(pickle.dumps(prefetcher)).request(0, [tars[5]])
    wait_for(lambda: f"{tars[5].sha256}.tar" in kept(cache))


def test_fetches_ahead_as_soon_as_there_is_room(tmp_path, tars):
    cache = make(tmp_path, 1)
    with cache.open(tars[0]):
        Prefetcher(cache).request(0, tars[1:2])
        time.sleep(0.1)
        assert kept(cache) == names(tars[:1])
    wait_for(lambda: kept(cache) == names(tars[1:2]))


def test_a_forked_worker_fetches_ahead_by_itself(tmp_path, tars):
    cache = make(tmp_path, 8)
    prefetcher = Prefetcher(cache)
    prefetcher.request(0, tars[:1])
    wait_for(lambda: kept(cache) == names(tars[:1]))
    process = FORK.Process(target=lambda: (prefetcher.request(0, tars[1:2]), time.sleep(60)), daemon=True)
    process.start()
    wait_for(lambda: kept(cache) == names(tars[:2]))
    process.kill()
    process.join()


def test_what_somebody_else_fetches_is_left_to_them(tmp_path, tars, monkeypatch):
    cache, copied = make(tmp_path, 8), []

    def copy(tar, stream):
        copied.append(tar)
        if len(copied) == 1:
            cache.fetch(tar, wait=False)  # returns at once: it is being fetched
        download(tar, stream)

    download = caches.download
    monkeypatch.setattr(caches, "download", copy)
    cache.fetch(tars[0])
    assert copied == [tars[0]]


# --- sets at a URL, or staged -----------------------------------------------------------------------------------------


def upload(folder: Path, url: str) -> str:
    filesystem, path = fsspec.core.url_to_fs(url)
    for file in folder.iterdir():
        filesystem.pipe(f"{path}/{file.name}", file.read_bytes())
    return url


@pytest.mark.parametrize("where", ["memory", "staged"])
def test_a_set_reads_the_same_from_anywhere(tmp_path, make_set, where):
    near = ShardSet(make_set(tmp_path / "set", "latents"), "latents")
    location = upload(tmp_path / "set", "memory://bucket/set") if where == "memory" else near.location
    cache = Cache(tmp_path / "near", 2 * near.manifest.shards[0].bytes)
    far = ShardSet(location, "latents", cache)
    assert (len(far), far.fingerprint, far.location) == (14, near.fingerprint, location)
    for index in (0, 13, 3, 7, 1):
        one, other = decode_latents(far[index].members), decode_latents(near[index].members)
        np.testing.assert_array_equal(one.video_mean, other.video_mean)
    assert len(kept(cache)) == 2
    assert pickle.loads(pickle.dumps(far))[5].key == near[5].key


def test_indexes_are_fetched_once_and_anew_when_the_set_changed(tmp_path, make_set, monkeypatch):
    url, cache, fetched = "memory://bucket/changing", Cache(tmp_path / "near", 10**9), []
    monkeypatch.setattr(caches, "read_checked", lambda url: (fetched.append(url.rpartition("/")[2]), read(url))[1])
    read = remote.read_checked
    upload(make_set(tmp_path / "one", "latents"), url)
    assert ShardSet(url, "latents", cache)[0].key == "v_0-000000"
    assert sorted(fetched) == ["manifest.json", *(f"shard-00000{n}.json" for n in range(3))]
    ShardSet(url, "latents", cache)
    assert fetched[4:] == ["manifest.json"]
    upload(make_set(tmp_path / "two", "latents", first=100), url)
    assert ShardSet(url, "latents", cache)[0].key == "v_100-000000"


@pytest.mark.parametrize("damage", ["manifest.json", "shard-000001.json", "shard-000001.tar"])
def test_damage_at_a_url_is_noticed_before_use(tmp_path, make_set, damage):
    folder, url = make_set(tmp_path / "set", "latents"), f"memory://bucket/damaged-{damage}"
    content = bytearray((folder / damage).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / damage).write_bytes(content)
    upload(folder, url)
    with pytest.raises(DamagedSet, match=f"{url}/{damage}: "):
        ShardSet(url, "latents", Cache(tmp_path / "near", 10**9))[7]


def test_sets_that_cannot_be_read_are_refused_by_their_own_name(tmp_path, make_set):
    cache, url = Cache(tmp_path / "near", 10**9), upload(make_set(tmp_path / "set", "clips"), "memory://bucket/clips")
    with pytest.raises(UserError, match="^memory://bucket/clips: contains clips, but latents are required here$"):
        ShardSet(url, "latents", cache)
    with pytest.raises(UserError, match="memory://bucket/none/manifest.json: there is no such file"):
        ShardSet("memory://bucket/none", "latents", cache)
    with pytest.raises(UserError, match="memory://bucket/clips: .* requires reading.stage=FOLDER"):
        ShardSet(url, "clips")
