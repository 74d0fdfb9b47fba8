import io

import numpy as np
import pytest

from mmldm_scale.shards.json_files import read_json, write_json
from mmldm_scale.shards.latents import encode_latents
from mmldm_scale.shards.manifest import Manifest, ShardEntry
from mmldm_scale.shards.verify import Findings, verify_set
from mmldm_scale.shards.writer import ShardWriter


@pytest.mark.parametrize("kind", ["clips", "latents"])
def test_a_whole_set_has_no_faults(tmp_path, make_set, kind):
    done = []
    assert verify_set(make_set(tmp_path / "set", kind), done.append) == Findings([], [])
    assert sum(done) == 14


def test_every_fault_is_named_at_once(tmp_path, make_set):
    folder = make_set(tmp_path / "set", "latents", shards=5)
    for number, change in ((0, lambda data: data[:-512]), (1, flipped), (3, lambda data: data)):
        tar = folder / f"shard-00000{number}.tar"
        tar.write_bytes(change(tar.read_bytes()))
    (folder / "shard-000002.tar").unlink()
    (folder / "shard-000003.json").write_text("{}")
    (folder / "shard-000009.tar.tmp").write_text("left over")
    findings = verify_set(folder)
    faults = "\n".join(findings.faults)
    assert "shard-000000.tar: " in faults
    assert "shard-000001: the tar's sha256 differs from the one in its index" in faults
    assert "shard-000001: sample v_5-000000: its bytes do not match their checksum" in faults
    assert "shard-000002.tar: is missing" in faults
    assert "shard-000003.json: " in faults
    assert "shard-000009.tar.tmp: does not belong to the set" in faults
    assert "shard-000004" not in faults
    assert findings.shards == [0, 1, 2, 3]


def flipped(data: bytes) -> bytes:
    return data[:700] + bytes([data[700] ^ 1]) + data[701:]


def test_dropped_rows_have_to_add_up(tmp_path, make_set):
    folder = make_set(tmp_path / "set", "clips")
    log = folder / "dropped.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[1:]))
    faults = verify_set(folder).faults
    assert any("2 rows, but the manifest counts 3" in fault for fault in faults)
    log.unlink()
    assert any("dropped.jsonl: cannot be read" in fault for fault in verify_set(folder).faults)


def test_statistics_have_to_be_those_of_the_samples(tmp_path, make_set):
    folder = make_set(tmp_path / "set", "latents")
    file = folder / "manifest.json"
    value = read_json(file)
    value["statistics"]["video"]["std"][0] *= 1.001
    write_json(file, value)
    assert verify_set(folder).faults == ["manifest.json: its statistics differ from those of the samples"]


@pytest.mark.parametrize("value", [None, {}, {"video": {"mean": [1]}}, {"audio": {"count": "x"}}])
def test_sums_that_are_not_those_of_the_samples(tmp_path, make_set, value):
    folder = make_set(tmp_path / "set", "latents")
    file = folder / "shard-000001.json"
    write_json(file, {**read_json(file), "statistics": value})
    assert verify_set(folder).faults == ["shard-000001: the sums in its index differ from those of its samples"]


def rewrite(folder, members, meta):
    """Replace shard 0 by one with a single, whole sample of other content."""
    with ShardWriter(folder, 0) as shard:
        shard.add("w-000000", members, meta)
        index = shard.commit()
    manifest = Manifest.read(folder)
    shards = [ShardEntry.of(index), *manifest.shards[1:]]
    lost = manifest.samples - sum(entry.samples for entry in shards)
    manifest.shards, manifest.samples, manifest.candidates = shards, manifest.samples - lost, manifest.candidates - lost
    manifest.write(folder)


def test_whole_samples_of_wrong_content_are_found(tmp_path, make_set, make_latent):
    folder = make_set(tmp_path / "set", "latents")
    members = encode_latents(make_latent(0))
    array = np.load(io.BytesIO(members["video.npy"]))
    start = len(members["video.npy"]) - array.nbytes
    array[1, 2, 3, 0] = np.nan
    rewrite(folder, {**members, "video.npy": members["video.npy"][:start] + array.tobytes()}, {"class": 0})
    assert any("w-000000: video.npy: holds values that are not finite" in fault for fault in verify_set(folder).faults)
    rewrite(folder, {**members, "audio.npy": members["video.npy"]}, {"class": 0})
    assert any("sample w-000000: audio_mean has shape (4, 4, 4)" in fault for fault in verify_set(folder).faults)
    rewrite(folder, members, {"class": 1})
    assert any("sample w-000000: class is 1; must be" in fault for fault in verify_set(folder).faults)
