import io
import os
import pickle
import shutil
import wave

import numpy as np
import pytest
import webdataset
from torch.utils.data import DataLoader

from mmldm_scale.common.errors import Outage, UserError
from mmldm_scale.shards import reader
from mmldm_scale.shards.clips import decode_clip
from mmldm_scale.shards.json_files import DamagedSet
from mmldm_scale.shards.latents import decode_latents
from mmldm_scale.shards.reader import DamagedSample, ShardSet


def urls(folder):
    return [str(tar) for tar in sorted(folder.glob("*.tar"))]


def read_all(shards):
    return [shards[i] for i in range(len(shards))]


def test_any_sample_by_its_index(tmp_path, make_set, make_latent):
    shards = ShardSet(make_set(tmp_path / "set", "latents"), "latents")
    assert len(shards) == 14
    for i in (13, 0, 7, 4, 5):
        assert shards[i].key == shards.key(i) == f"v_{i}-000000"
        assert shards[i].meta == {"path": f"v/{i}.mp4", "label": "v", "class": 0, "start": 0.4 * i}
        found, expected = decode_latents(shards[i].members), make_latent(i)
        np.testing.assert_array_equal(found.video_mean, expected.video_mean.astype(np.float16))
    assert shards.shard_range(1) == range(5, 10)
    assert shards.shard_range(2) == range(10, 14)
    for beyond in (14, -1):
        with pytest.raises(IndexError):
            shards[beyond]


def test_many_samples_at_once(tmp_path, make_set):
    shards = ShardSet(make_set(tmp_path / "set", "latents"), "latents")
    indices = [13, 0, 7, 7, 4]
    for index, sample in zip(indices, shards.read(indices), strict=True):
        assert sample.key == shards[index].key
        assert {name: bytes(data) for name, data in sample.members.items()} == {
            name: bytes(data) for name, data in shards[index].members.items()
        }
    assert shards.read([]) == []
    with pytest.raises(IndexError):
        shards.read([3, 14])
    assert shards.sizes == [5, 5, 4]
    assert [shards.shard_of(index) for index in (0, 4, 5, 13)] == [f"shard-00000{n}" for n in (0, 0, 1, 2)]


def test_a_closed_set_can_be_read_on(tmp_path, make_set):
    shards = ShardSet(make_set(tmp_path / "set", "latents"), "latents")
    before = shards[3]
    shards.close()
    assert bytes(shards[3].members["json"]) == bytes(before.members["json"])


def test_clips_come_back(tmp_path, make_set, make_clip):
    shards = ShardSet(make_set(tmp_path / "set", "clips"), "clips")
    clip = decode_clip(shards[6].members)
    assert np.abs(clip.frames.astype(int) - make_clip(6).frames).mean() < 3
    np.testing.assert_allclose(clip.waveform, make_clip(6).waveform, atol=1e-4)


def test_loader_workers_read_the_same(tmp_path, make_set):
    shards = ShardSet(make_set(tmp_path / "set", "latents"))
    shards[3]  # a tar is mapped already when the workers start
    keys = [sample.key for sample in read_all(shards)]
    for context, workers in (("fork", 2), ("spawn", 1)):
        loader = DataLoader(Keys(shards), batch_size=None, num_workers=workers, multiprocessing_context=context)
        assert list(loader) == keys
    assert [sample.key for sample in read_all(pickle.loads(pickle.dumps(shards)))] == keys


class Keys:
    def __init__(self, shards):
        self.shards = shards

    def __len__(self):
        return len(self.shards)

    def __getitem__(self, index):
        return self.shards[index].key


def test_more_tars_than_may_be_open(tmp_path, make_set, monkeypatch):
    monkeypatch.setattr(reader, "OPEN_TARS", 2)
    shards = ShardSet(make_set(tmp_path / "set", "latents", shards=6))
    kept = shards[0]
    assert [shards[i].key for i in range(28, -1, -1)] == [f"v_{i}-000000" for i in range(28, -1, -1)]
    assert decode_latents(kept.members).audio_mean.shape == (4, 2, 2)  # its tar was closed long ago


def sound(data):
    with wave.open(io.BytesIO(data)) as file:
        return file.getframerate(), file.getnframes()


def test_webdataset_reads_clips(tmp_path, make_set):
    folder = make_set(tmp_path / "set", "clips")
    expected = [(sample.key, bytes(sample.members["wav"])) for sample in read_all(ShardSet(folder))]
    raw = list(webdataset.WebDataset(urls(folder), shardshuffle=False))
    assert [(sample["__key__"], sample["wav"]) for sample in raw] == expected
    for how in ("pil", "rgb8"):
        pipeline = webdataset.WebDataset(urls(folder), shardshuffle=False)
        decoded = list(pipeline.decode(how, webdataset.handle_extension("wav", sound)))
        assert np.asarray(decoded[3]["02.jpg"]).shape == (16, 16, 3)
        assert decoded[3]["json"]["path"] == "v/3.mp4"
        assert decoded[3]["wav"] == (8000, 3200)


def test_webdataset_reads_latents(tmp_path, make_set):
    folder = make_set(tmp_path / "set", "latents")
    found = list(webdataset.WebDataset(urls(folder), shardshuffle=False).decode())
    assert len(found) == 14
    for sample, ours in zip(found, read_all(ShardSet(folder)), strict=True):
        latents = decode_latents(ours.members)
        np.testing.assert_array_equal(sample["audio.npy"], np.stack([latents.audio_mean, latents.audio_logvar]))
        np.testing.assert_array_equal(sample["mirrored.npy"][1], latents.mirrored_logvar)
        assert sample["json"] == ours.meta


# --- damage ----------------------------------------------------------------------------------------------------------


def boundaries(folder):
    shards = ShardSet(folder)
    return [int(start) for start in shards._spans[:, 0] if start]


@pytest.mark.parametrize("where", ["random byte", "512", "4096", "member boundary", "empty", "longer"])
def test_a_tar_of_another_length_is_refused_at_opening(tmp_path, make_set, where):
    folder = make_set(tmp_path / "set", "latents")
    tar = folder / "shard-000001.tar"
    whole = tar.read_bytes()
    length = {
        "random byte": int(np.random.default_rng(0).integers(1, len(whole))),
        "512": 512,
        "4096": 4096,
        "member boundary": boundaries(folder)[1],
        "empty": 0,
        "longer": len(whole) + 512,
    }[where]
    tar.write_bytes(whole[:length].ljust(length, b"\0"))
    with pytest.raises(UserError, match=f"shard-000001.tar: {len(whole):,} bytes expected, {length:,} found") as error:
        ShardSet(folder)
    assert "\n" not in str(error.value)


def test_any_flipped_bit_is_noticed_before_use(tmp_path, make_set):
    folder = make_set(tmp_path / "set", "latents", shards=1, samples=3)
    tar = folder / "shard-000000.tar"
    whole = tar.read_bytes()
    rng = np.random.default_rng(0)
    spans = ShardSet(folder)._spans.tolist()
    for position in rng.integers(0, spans[-1][1], 200).tolist():
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        tar.write_bytes(damaged)
        shards = ShardSet(folder)
        hit = next(i for i, (start, end) in enumerate(spans) if start <= position < end)
        for i in range(2):
            if i == hit:
                with pytest.raises(DamagedSample, match=rf"set: sample v_{i}-000000 in shard-000000"):
                    shards[i]
            else:
                shards[i]


def test_a_tar_that_is_cut_short_while_it_is_mapped_does_not_end_the_process(tmp_path, make_set):
    folder = make_set(tmp_path / "set", "latents")
    shards = ShardSet(folder)
    spans = shards._spans.tolist()
    shards.read([0, 1])
    os.truncate(folder / "shard-000000.tar", spans[0][1])
    assert shards[0].key == "v_0-000000"
    for size in (spans[0][1], 0):  # reading beyond the end would be SIGBUS
        os.truncate(folder / "shard-000000.tar", size)
        with pytest.raises(
            DamagedSample, match="v_1-000000 in shard-000000: its tar was cut short since it was opened"
        ):
            shards[1]


@pytest.mark.parametrize("with_index", [False, True])
def test_swapped_shards_are_noticed(tmp_path, make_set, with_index):
    """All latent shards have one size, so only names and checksums tell them apart."""
    folder = make_set(tmp_path / "set", "latents")
    one, two = (folder / f"shard-00000{n}" for n in range(2))
    assert one.with_suffix(".tar").stat().st_size == two.with_suffix(".tar").stat().st_size
    for suffix in (".tar", ".json")[: 1 + with_index]:
        os.rename(one.with_suffix(suffix), folder / "aside")
        os.rename(two.with_suffix(suffix), one.with_suffix(suffix))
        os.rename(folder / "aside", two.with_suffix(suffix))
    if with_index:
        with pytest.raises(DamagedSet, match=r"shard-000000\.json: is the index of 'shard-000001'"):
            ShardSet(folder)
    else:
        with pytest.raises(DamagedSample, match="v_0-000000 in shard-000000"):
            ShardSet(folder)[0]


def test_a_shard_of_another_set_is_refused(tmp_path, make_set):
    folder, other = make_set(tmp_path / "set", "latents"), make_set(tmp_path / "other", "latents", first=100)
    for suffix in (".tar", ".json"):
        shutil.copy(other / f"shard-000001{suffix}", folder)
    with pytest.raises(DamagedSet, match=r"shard-000001\.json: is the index of another set's shard-000001"):
        ShardSet(folder)


@pytest.mark.parametrize("suffix", [".tar", ".json"])
def test_a_missing_shard_is_refused(tmp_path, make_set, suffix):
    folder = make_set(tmp_path / "set", "latents")
    (folder / f"shard-000002{suffix}").unlink()
    with pytest.raises(DamagedSet, match=rf"shard-000002\{suffix}: "):
        ShardSet(folder)


def test_a_tar_that_goes_away_after_opening_is_noticed(tmp_path, make_set):
    folder = make_set(tmp_path / "set", "latents")
    shards = ShardSet(folder)
    (folder / "shard-000000.tar").unlink()
    with pytest.raises(Outage, match=r"shard-000000\.tar: cannot be read any more: No such file"):
        shards[0]


def test_a_tar_that_shrinks_after_opening_is_noticed(tmp_path, make_set):
    folder = make_set(tmp_path / "set", "latents")
    shards = ShardSet(folder)
    (folder / "shard-000000.tar").write_bytes(b"short")
    with pytest.raises(DamagedSet, match="5 found; it changed since opening"):
        shards[0]
