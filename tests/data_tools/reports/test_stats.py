"""What a set is said to hold, against sets whose content is known, and the sheet that shows it."""

import base64
import io
import json
import re
import wave

import numpy as np
import pytest
from PIL import Image

from data_tools.reports import stats as module
from data_tools.reports.contact_sheet import spread
from data_tools.reports.stats import describe, stats
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.clip import Clip
from mmldm_scale.shards.clips import encode_clip
from mmldm_scale.shards.latents import LatentSample, decode_latents, encode_latents, statistics, sums
from mmldm_scale.shards.manifest import DROPPED, Manifest, ShardEntry
from mmldm_scale.shards.writer import ShardWriter

MEDIA = MediaConfig(frames=4, fps=10, size=16, audio=AudioImageConfig(sample_rate=8000, f_max=4000))
TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(MEDIA.audio_samples) / 8000)


def write_set(folder, kind, shards, **fields):
    """Write ``shards``, lists of (members, meta), with one silent drop in the first, as a finished set."""
    folder.mkdir(parents=True)
    indexes = []
    for number, samples in enumerate(shards):
        with ShardWriter(folder, number) as writer:
            for i, (members, meta) in enumerate(samples):
                writer.add(f"s{number}-{i:06d}", members, meta)
            if number == 0:
                writer.drop("quiet", "ignore_interrupts.mp4", "silent", "RMS level -80 dB")
            latents = [decode_latents(members) for members, _ in samples] if kind == "latents" else []
            indexes.append(writer.commit(sums(latents) if latents else None))
    count = sum(map(len, indexes))
    (folder / DROPPED).write_text("".join(json.dumps(row) + "\n" for row in indexes[0].dropped))
    manifest = Manifest(
        kind=kind,
        media=MEDIA,
        classes=["cat", "<dog>"],
        videos=3,
        failed_files=0,
        candidates=count + 1,
        samples=count,
        dropped=1,
        reasons={"silent": 1},
        shards=[ShardEntry.of(index) for index in indexes],
        statistics=statistics(index.statistics for index in indexes if index.statistics),
        **fields,
    )
    manifest.write(folder)
    return folder


def meta(label="cat", **fields):
    return {"path": "a <b>.mp4", "start": 0.4, "label": label, "labels": [label], "class": 0, **fields}


def clip(grey):
    return encode_clip(Clip(np.full((4, 16, 16, 3), grey, np.uint8), TONE.astype(np.float32)), 8000, 95)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Six clips in three shards, one of them empty."""
    first = [(clip(40 * i), meta(split="train", origin=f"r{i // 2}", rms_db=-10.0 - 4 * i)) for i in range(4)]
    last = [(clip(200), meta("<dog>", split="test", origin="r9", rms_db=None)), (clip(220), meta(None, labels=[]))]
    return write_set(tmp_path_factory.mktemp("sets") / "clips", "clips", [first, [], last])


def latent(value, logvar):
    mean = np.full((2, 2, 2), value) * np.array([1, -1])[:, None, None]
    spread = np.full((2, 2, 2), logvar)
    return encode_latents(LatentSample(mean, spread, mean, spread, mean, spread))


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    samples = [(latent(3.0, -30.0), meta()), (latent(-1000.0, 0.0), meta()), (latent(1e-6, 20.0), meta())]
    folder = tmp_path_factory.mktemp("sets") / "latents"
    return write_set(folder, "latents", [samples[:1], samples[1:]], audio_shape=(2, 2, 2), video_shape=(2, 2, 2))


def test_counts_of_clips(clips):
    found = stats(clips)
    assert (found.kind, found.videos, found.samples, found.dropped, found.candidates) == ("clips", 3, 6, 1, 7)
    assert found.seconds == pytest.approx(6 * 0.4)
    assert list(found.labels.items()) == [("cat", 4), ("", 1), ("<dog>", 1)]
    assert found.splits == {"train": 4, "": 1, "test": 1}
    assert found.reasons == {"silent": 1}
    assert found.origins == 4  # r0, r1, r9 and the path of the one without
    sizes = [0, *sorted(tar.stat().st_size for tar in clips.glob("*.tar"))]
    assert len(sizes) == 3
    assert found.bytes == sum(sizes)
    assert found.shard_bytes == module.Spread(*map(float, sizes))
    assert found.shard_samples == module.Spread(0, 2, 4)
    assert found.latents == {}


def test_levels(clips):
    levels = stats(clips).levels
    assert levels.spread == module.Spread(-22.0, -16.0, -10.0)
    assert levels.unknown == 2
    bars = {levels.start + 3 * i: count for i, count in enumerate(levels.counts) if count}
    assert bars == {-24.0: 1, -18.0: 1, -15.0: 1, -12.0: 1}  # -22, -18, -14, -10


def test_float16_of_latents(latents):
    found = stats(latents).latents["video"]
    manifest = Manifest.read(latents)
    assert found.shape == (2, 2, 2)
    assert (found.mean, found.std) == tuple(manifest.statistics["video"][key] for key in ("mean", "std"))
    assert found.largest == 1000.0
    assert found.logvar == module.Spread(-30.0, 0.0, 20.0)
    assert found.clamped_low == found.clamped_high == found.subnormal == pytest.approx(1 / 3)
    assert found.rounding == pytest.approx(1000 * 2**-11 / min(found.std))


def test_text_names_the_numbers(clips, latents):
    text = describe(stats(clips))
    assert "6 clips" in text
    assert "with 7 candidates + 0 without; 6 samples + 1 dropped (1 silent)" in text
    assert "labels: 4 cat, 1 (none), 1 <dog>" in text
    assert "RMS level: -22.0 … -16.0 … -10.0 dB; 2 without" in text
    assert "largest magnitude 1000" in describe(stats(latents))


def test_many_labels_are_summed_up_in_text_but_kept_in_numbers(tmp_path):
    samples = [(clip(0), meta(f"label {i:02d}")) for i in range(20)]
    found = stats(write_set(tmp_path / "set", "clips", [samples]))
    assert len(found.labels) == 20
    assert "1 label 11, 8 (8 others)" in describe(found)


def test_the_sheet_spreads_over_recordings():
    long = ["long"] * 100 + ["a", "b", "c"]
    assert [long[number] for number in spread(long, 4)] == ["long", "a", "b", "c"]
    assert spread(long, 5) == [25, 75, 100, 101, 102]
    assert spread([f"{i // 2}" for i in range(20)], 3) == [1, 9, 19]
    assert spread(["only"] * 10, 3) == [1, 5, 8]
    assert spread(["a", "b"], 24) == [0, 1]
    assert spread([], 24) == []


def test_the_sheet_shows_and_plays_samples(clips, tmp_path):
    stats(clips, tmp_path / "sheet", samples=3)
    assert {path.name for path in (tmp_path / "sheet").iterdir()} == {"index.html", "contact.jpg", "stats.json"}
    page = (tmp_path / "sheet" / "index.html").read_text()
    assert re.findall(r"<figcaption>([^<]*)<", page) == ["s0-000001", "s2-000000", "s2-000001"]
    assert "a &lt;b&gt;.mp4" in page
    assert "<dog>" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # self-contained
    sounds = [base64.b64decode(data) for data in re.findall(r"data:audio/wav;base64,([^\"]+)", page)]
    with wave.open(io.BytesIO(sounds[0])) as file:
        played = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    np.testing.assert_allclose(played, TONE, atol=1e-4)
    picture = _first_picture(page)
    assert picture.shape == (160, 768, 3)
    assert abs(float(picture[:96].mean()) - 40) < 3  # the grey of the first clip's frames
    rows = picture[96:].astype(int).sum((1, 2))
    assert rows.argmax() > 50  # the tone is bright, and low: near the lower edge
    value = json.loads((tmp_path / "sheet" / "stats.json").read_text())
    assert (value["samples"], value["labels"]["cat"]) == (6, 4)


def test_the_sheet_of_latents_shows_channels(latents, tmp_path):
    stats(latents, tmp_path / "sheet")
    page = (tmp_path / "sheet" / "index.html").read_text()
    assert page.count("<figure>") == 3
    assert "<audio" not in page
    picture = _first_picture(page)
    assert picture.shape[1] == 768
    with Image.open(tmp_path / "sheet" / "contact.jpg") as sheet:
        assert sheet.width > 1536


def _first_picture(page):
    data = re.search(r"data:image/jpeg;base64,([^\"]+)", page)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_an_empty_set_has_a_sheet_too(tmp_path):
    folder = write_set(tmp_path / "set", "clips", [[]])
    found = stats(folder, tmp_path / "sheet")
    assert (found.samples, found.dropped) == (0, 1)
    assert "0 clips" in (tmp_path / "sheet" / "index.html").read_text()


def test_what_cannot_work_is_one_line(clips, latents, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no such folder"):
        stats(tmp_path / "nothing")
    with pytest.raises(UserError, match="is a file"):
        stats(clips, tmp_path / "file")
    with pytest.raises(UserError, match="is a shard set"):
        stats(clips, latents)


def test_damage_is_named(clips, latents, tmp_path):
    for source, where in ((clips, b'"labels": ["cat"]'), (latents, b"NUMPY")):
        folder = tmp_path / source.name
        folder.mkdir()
        for file in source.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        tar = folder / "shard-000000.tar"
        data = bytearray(tar.read_bytes())
        data[data.index(where)] ^= 0x80
        tar.write_bytes(data)
        with pytest.raises(UserError, match="s0-000000") as error:
            stats(folder)
        assert len(str(error.value).splitlines()) == 1
