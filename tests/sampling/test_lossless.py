"""``mmldm sample --lossless``. What the model makes is given, so that tars can be compared byte for byte anywhere."""

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset

from mmldm_scale.common import atomic_files
from mmldm_scale.common.errors import UserError
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.whole import read_whole
from mmldm_scale.sampling.pipeline import Pipeline
from mmldm_scale.shards.index import ShardIndex
from mmldm_scale.shards.manifest import Manifest
from mmldm_scale.shards.verify import Findings, verify_set
from tests.support.sampling_job import sample
from tests.support.tiny_models.weights_folders import MEDIA

TARS = Path("lossless/svg")  # in the output folder


def made(index: int) -> Clip:
    """Return what the model makes as sample ``index``: noise, of which lossy formats keep little."""
    random = np.random.default_rng(index)
    frames = random.integers(0, 256, (MEDIA.frames, MEDIA.size, MEDIA.size, 3)).astype(np.uint8)
    return Clip(frames, random.uniform(-1, 1, MEDIA.audio_samples).astype(np.float32))


def join(pipeline: Pipeline, task: str, indices: range, *others: object) -> list[Clip]:
    return [made(index) for index in indices]


@pytest.fixture(scope="module", autouse=True)
def _given_samples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "windows", lambda *_: [])
        patch.setattr(Pipeline, "join", join)
        yield


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> Path:
    """A folder filled by one undisturbed job."""
    folder = tmp_path_factory.mktemp("samples") / "whole"
    assert sample(model, folder, "--lossless") == 0
    return folder


def files_in(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of the lossless set of the output folder ``folder``."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted((folder / TARS).iterdir())}


def test_any_reader_of_webdatasets_reads_the_samples_back(whole, tmp_path):
    urls = [str(tar) for tar in sorted((whole / TARS).glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [each["__key__"] for each in samples] == [f"svg_{index:06d}" for index in range(5)]
    for index, each in enumerate(samples):
        frames = np.stack([each[f"{number:02d}.png"] for number in range(MEDIA.frames)])
        np.testing.assert_array_equal(frames, made(index).frames)
        beside = json.loads((whole / f"svg_{index:06d}.json").read_text())
        assert each["json"] == {**beside, "frames": 4, "fps": 10, "sample_rate": 8000}
    (raw,) = webdataset.WebDataset([urls[2]], shardshuffle=False)
    (tmp_path / "sound.wav").write_bytes(raw["wav"])
    clip, _, sample_rate = read_whole(tmp_path / "sound.wav")
    np.testing.assert_array_equal(clip.waveform, made(4).waveform)
    assert sample_rate == 8000


def test_it_is_a_shard_set_with_index_and_manifest(whole):
    assert verify_set(whole / TARS) == Findings([], [])
    manifest = Manifest.read(whole / TARS, "samples")
    assert [entry.samples for entry in manifest.shards] == [2, 2, 1]
    assert manifest.media == MEDIA
    record = json.loads((whole / "svg_000000.json").read_text())
    common = ("task", "seed", "guidance", "sampler", "steps", "checkpoint", "autoencoder")
    assert {name: manifest.preparation[name] for name in common} == {name: record[name] for name in common}
    assert len(list(whole.glob("*.mp4"))) == 5


@pytest.mark.parametrize("parts", [2, 3])
def test_any_number_of_parts_makes_the_same_bytes(model, whole, tmp_path, parts):
    out = tmp_path / "out"
    for part in range(parts, 0, -1):
        with pytest.raises(UserError, match="unfinished|not a shard set|no such folder"):
            Manifest.read(out / TARS)
        assert sample(model, out, "--lossless", "--part", f"{part}/{parts}") == 0
    assert files_in(out) == files_in(whole)


@pytest.mark.parametrize("renamed", ["shard-000000.tar", "shard-000001.json", "shard-000002.tar", "manifest.json"])
def test_killed_at_any_moment_and_started_again_it_ends_with_the_same_bytes(
    model, whole, tmp_path, monkeypatch, renamed
):
    class Killed(BaseException):
        pass

    def rename(old: Path, new: Path) -> None:
        if new.name == renamed:
            shutil.copyfile(old, new.with_name(f"{new.name}.0a.tmp"))  # which SIGKILL would leave
            raise Killed
        original(old, new)

    out, original = tmp_path / "out", atomic_files._rename
    with monkeypatch.context() as patch:
        patch.setattr(atomic_files, "_rename", rename)
        with pytest.raises(Killed):
            sample(model, out, "--lossless")
    visible = {name: digest for name, digest in files_in(out).items() if not name.endswith(".tmp")}
    assert visible.items() <= files_in(whole).items()
    with pytest.raises(UserError, match="unfinished shard set; run the command that began it again"):
        Manifest.read(out / TARS)
    before = {file: file.stat().st_mtime_ns for file in out.glob("*.mp4")}
    assert sample(model, out, "--lossless") == 0
    assert files_in(out) == files_in(whole)
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_samples_that_were_made_without_tars_get_them_and_stay(model, whole, tmp_path, capsys):
    out = tmp_path / "out"
    sample(model, out, number=3)
    before = {file: file.stat().st_mtime_ns for file in out.glob("*.mp4")}
    assert not (out / "lossless").exists()
    sample(model, out, "--lossless", number=3)
    assert f"{out}: 3 svg samples are in no lossless tar yet; they are made again for it" in capsys.readouterr().err
    assert Manifest.read(out / TARS).samples == 3
    assert {file: file.stat().st_mtime_ns for file in before} == before
    sample(model, out, "--lossless", "--part", "2/3")  # of two more, one of them in the last block
    with pytest.raises(UserError, match="unfinished"):
        Manifest.read(out / TARS)
    sample(model, out, "--lossless")
    assert files_in(out) == files_in(whole)
    sample(model, out, "--lossless", number=3)  # fewer: all stay
    assert files_in(out) == files_in(whole)


def flip_a_byte(tar: Path) -> None:
    data = bytearray(tar.read_bytes())
    data[5000] ^= 1
    tar.write_bytes(data)


def cut(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes()[:-512])


def another_json(tar: Path) -> None:
    """Exchange the shard, its index too, for one whose samples say that they were made with another seed."""
    index = ShardIndex.read(tar.parent, 1)
    data = tar.read_bytes().replace(b'"seed": 0', b'"seed": 7')
    tar.write_bytes(data)
    index.sha256 = hashlib.sha256(data).hexdigest()
    spans = index.spans.tolist()
    index.crc32 = np.array([zlib.crc32(data[start:end]) for start, end in spans], np.int64)
    index.write(tar.parent)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip_a_byte, "the tar's sha256 differs from the one in its index"),
        (cut, "bytes expected"),
        (lambda tar: tar.unlink(), "is missing, but its index exists"),
        (lambda tar: tar.with_suffix(".json").write_text("{"), "does not match its checksum"),
        (another_json, "the JSON of svg_000002: another seed than this folder's"),
    ],
)
def test_verify_finds_a_damaged_tar_and_makes_it_again(
    model, whole, tmp_path, capsys, damage: Callable[[Path], object], says: str
):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    tar = out / TARS / "shard-000001.tar"
    damage(tar)
    assert sample(model, out, "--lossless", "--verify") == 0
    told = capsys.readouterr().err
    assert f"{tar}: damaged, is made again: " in told
    assert says in told
    assert files_in(out) == files_in(whole)
    assert sample(model, out, "--lossless", "--verify") == 0
    assert "damaged" not in capsys.readouterr().err


def test_a_tar_that_is_gone_is_made_again_without_being_asked_to_verify(model, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / TARS / "shard-000001.tar").unlink()
    assert sample(model, out, "--lossless") == 0
    assert files_in(out) == files_in(whole)


def test_tars_of_other_samples_are_not_mixed_in(model, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole / TARS, out / TARS)
    with pytest.raises(UserError, match=r"lossless/svg: contains other samples \(preparation.seed: in the folder 0"):
        sample(model, out, "--lossless", "seed=3")
