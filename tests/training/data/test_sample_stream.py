"""The sample stream of a run: order, mixture, staging, and replacements of damaged samples."""

import errno
import hashlib
import json
import time
from pathlib import Path

import pytest

from mmldm_scale.common import atomic_files
from mmldm_scale.common.errors import Outage, UserError
from mmldm_scale.config import ReadingConfig, TrainingConfig
from mmldm_scale.shards.latents import decode_latent_batch
from mmldm_scale.shards.remote.cache import Cache
from mmldm_scale.shards.remote.remote import StoredTar
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.training.data.sample_stream import SampleStream
from tests.support.datasets.latent_sets import damage, write_latents

SIZES = (6, 0, 7, 5, 8)  # 26 samples


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    return write_latents(tmp_path / "latents", SIZES)


def open_samples(tmp_path: Path, *sets: Path, weights=(), **reading) -> SampleStream:
    config = DiTTraining(
        shards=[str(folder) for folder in sets or [tmp_path / "latents"]],
        weights=list(weights),
        run=str(tmp_path / "run"),
        reading=ReadingConfig(**reading),
        training=TrainingConfig(seed=3),
    )
    return SampleStream(config, "latents")


def keys(samples: SampleStream, positions: range) -> list[str]:
    return samples.read(positions, lambda read: [sample.key for sample in read])


def quarantined(tmp_path: Path) -> list[dict[str, str]]:
    return [json.loads(file.read_text()) for file in sorted((tmp_path / "run/quarantine").glob("*.json"))]


def test_an_epoch_is_every_sample_once(tmp_path, latents):
    samples = open_samples(tmp_path, window=2)
    assert sorted(keys(samples, range(26))) == [f"clip_{i:03d}" for i in range(26)]
    assert keys(samples, range(26)) != keys(open_samples(tmp_path, window=1), range(26))
    assert not (tmp_path / "run").exists()


def test_another_sample_takes_a_damaged_ones_place(tmp_path, latents, capsys):
    before = keys(open_samples(tmp_path), range(52))
    bad = [damage(latents, 3), damage(latents, 20)]
    samples = open_samples(tmp_path, damaged_share=0.1)
    after = keys(samples, range(52))
    for old, new in zip(before, after, strict=True):
        assert (new not in bad) if old in bad else (new == old)
    alone = [keys(open_samples(tmp_path, damaged_share=0.1), range(p, p + 1))[0] for p in range(52)]
    assert alone == after  # whatever was read before, in whichever batch
    assert len(samples.quarantine) == 2
    assert [(row["key"], row["shard"]) for row in quarantined(tmp_path)] == [
        ("clip_003", "shard-000000"),
        ("clip_020", "shard-000004"),
    ]
    assert {row["detail"] for row in quarantined(tmp_path)} == {"its bytes do not match their checksum"}
    assert capsys.readouterr().err.count("quarantined sample clip_003 of shard-000000 in ") == 1


def test_samples_to_compare_with_are_others_and_damaged_ones_are_replaced(tmp_path, latents):
    def others(samples: SampleStream) -> list[str]:
        return samples.read_others(range(26), lambda read: [sample.key for sample in read])

    before = others(open_samples(tmp_path))
    assert sorted(before) == sorted(own := keys(open_samples(tmp_path), range(26)))
    assert all(one != other for one, other in zip(own, before, strict=True))
    bad = damage(latents, 3)
    after = others(open_samples(tmp_path, damaged_share=0.1))
    for old, new in zip(before, after, strict=True):
        assert (new != bad) if old == bad else (new == old)
    assert [row["key"] for row in quarantined(tmp_path)] == [bad]


def test_a_sample_that_decodes_to_something_else_is_damaged_too(tmp_path, latents):
    def refuse_one(found):
        if any(sample.key == "clip_007" for sample in found):
            raise ValueError("of another shape")
        return [sample.key for sample in found]

    found = open_samples(tmp_path, damaged_share=0.1).read(range(26), refuse_one)
    assert len(found) == 26
    assert [(row["key"], row["detail"]) for row in quarantined(tmp_path)] == [("clip_007", "of another shape")]


def test_more_damage_than_allowed_ends_the_run(tmp_path, latents):
    for index in (2, 9, 24):
        damage(latents, index)
    samples = open_samples(tmp_path, damaged_share=0.1)  # 2 of 26
    with pytest.raises(UserError, match=r"run/quarantine: 3 damaged samples, reading.damaged_share allows 2") as error:
        keys(samples, range(26))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="3 damaged samples"):  # a resumed run continues counting
        keys(open_samples(tmp_path, damaged_share=0.1), range(26))


def test_damaged_samples_count_though_a_full_disk_cannot_record_them(tmp_path, latents, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    damage(latents, 2)
    samples = open_samples(tmp_path, damaged_share=0.04)  # 1 of 26
    with monkeypatch.context() as patch:
        patch.setattr(atomic_files, "_write", full)
        keys(samples, range(52))
    assert (len(samples.quarantine), quarantined(tmp_path)) == (1, [])
    keys(samples, range(26))  # there is room again
    assert (len(samples.quarantine), len(quarantined(tmp_path))) == (1, 1)


def test_a_run_folder_that_was_moved_away_is_not_made_again(tmp_path, latents):
    damage(latents, 2)
    (tmp_path / "run").mkdir()
    samples = open_samples(tmp_path, damaged_share=0.04)
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(Outage, match="cannot be written: No such file or directory"):
        keys(samples, range(26))
    assert not (tmp_path / "run").exists()


def test_the_same_samples_are_quarantined_from_several_processes(tmp_path, latents):
    damage(latents, 5)
    one, other = (open_samples(tmp_path, damaged_share=0.04) for _ in range(2))  # 1 of 26
    assert keys(one, range(26)) == keys(other, range(26))
    assert len(one.quarantine) == len(other.quarantine) == 1


def test_a_preview_skips_what_is_damaged(tmp_path, latents):
    damage(latents, 0)
    damage(latents, 25)
    samples = open_samples(tmp_path, damaged_share=0.1)
    found = samples.spread(26, lambda found: found[0].key)
    assert found == [f"clip_{i:03d}" for i in [1, *range(1, 25), 1]]
    assert samples.spread(2, lambda found: found[0].key) == ["clip_001", "clip_013"]


def test_staged_shards_read_the_same_and_ahead(tmp_path, latents):
    near = tmp_path / "near"
    plain, staged = open_samples(tmp_path, window=1), open_samples(tmp_path, window=1, stage=str(near))
    for positions in (range(6), range(6, 60), range(1000, 1003)):
        assert keys(staged, positions) == keys(plain, positions)
    again = open_samples(tmp_path, window=1, stage=str(tmp_path / "other"))
    order = again.mixture.orders[0]
    soon = {again.mixture.sets[0].stored_tar(order.pool(p).shards[0]).sha256 for p in (0, order.pool(0).end)}
    keys(again, range(1))
    end = time.monotonic() + 10
    while {file.stem for file in (tmp_path / "other").glob("*.tar")} != soon and time.monotonic() < end:
        time.sleep(0.01)
    assert {file.stem for file in (tmp_path / "other").glob("*.tar")} == soon  # the next pool's, and no more


def test_a_preview_keeps_nothing_staged(tmp_path, latents):
    samples = open_samples(tmp_path, stage=str(tmp_path / "near"))
    samples.spread(26, lambda found: None)
    (tmp_path / "other.tar").write_bytes(b"other")
    other = StoredTar(str(tmp_path / "other.tar"), 5, hashlib.sha256(b"other").hexdigest())
    Cache(tmp_path / "near", 5).open(other).close()  # there is room for 5 bytes when all else has gone


def test_a_mixture_is_staged_in_one_folder(tmp_path, latents):
    other = write_latents(tmp_path / "other", (4, 4), first=100)
    plain = open_samples(tmp_path, latents, other, weights=[1, 2], window=2)
    staged = open_samples(tmp_path, latents, other, weights=[1, 2], window=2, stage=str(tmp_path / "near"))
    assert keys(staged, range(80)) == keys(plain, range(80))
    read = decode_latent_batch([sample.members for sample in staged.mixture.read(range(6))])
    assert read.audio_mean.shape == (6, 4, 2, 2)


def test_a_stage_too_small_for_the_window_is_refused(tmp_path, latents):
    message = r"reading.stage_gigabytes: 1e-05 must be at least [\d.e-]+, to hold twice reading.window = 64 shards"
    with pytest.raises(UserError, match=message):
        open_samples(tmp_path, stage=str(tmp_path / "near"), stage_gigabytes=1e-5)
