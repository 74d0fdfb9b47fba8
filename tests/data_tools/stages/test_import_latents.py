"""Latents of another program become a set of ours, or are refused with a reason."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data_tools.shard import main
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder.gaussian import LOGVAR_RANGE
from mmldm_scale.shards.latents import decode_latents
from mmldm_scale.shards.reader import ShardSet
from tests.support.tiny_models.saved_autoencoder import MEDIA, save_autoencoder

AUDIO, VIDEO = (4, 2, 2), (4, 4, 4)
COUNT = 6


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return save_autoencoder(tmp_path_factory.mktemp("weights") / "autoencoder")


def tensor(number, part):
    """Mean and log-variance, (2, C, H, W) float32, that differ with ``number`` and ``part``."""
    shape = AUDIO if part == "audio" else VIDEO
    random = np.random.default_rng([number, len(part)])
    return np.stack([3 + 2 * random.standard_normal(shape), np.full(shape, -2.0)]).astype(np.float32)


@pytest.fixture
def theirs(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for number in range(COUNT):
        for part in ("audio", "video", "mirrored"):
            np.save(folder / f"clip {number}.{part}.npy", tensor(number, part))
    (folder / "clip 0.json").write_text(json.dumps({"label": "cat", "start": 1.6, "split": "test", "other": 1}))
    return folder


def imported(folder, output, autoencoder, *options):
    texts = ["--input", folder, "--output", output, "--autoencoder", autoencoder, "--samples-per-shard", 4, *options]
    return main(["import-latents", *map(str, texts)])


def refused(capsys, status):
    assert status == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("shard.py: ")]
    assert len(lines) == 1
    return lines[0]


def test_a_set_like_those_that_are_encoded_here(theirs, autoencoder, tmp_path, capsys):
    assert imported(theirs, tmp_path / "set", autoencoder) == 0
    assert "6 entries found = 6 taken + 0 dropped\n" in capsys.readouterr().out
    shards = ShardSet(tmp_path / "set", "latents")
    manifest = shards.manifest
    assert (len(shards), len(manifest.shards), manifest.media) == (COUNT, 2, MEDIA)
    assert (manifest.audio_shape, manifest.video_shape) == (AUDIO, VIDEO)
    assert manifest.autoencoder["fingerprint"] == pretrained.fingerprint(autoencoder)
    for number in range(COUNT):
        sample = decode_latents(shards[number].members)
        assert shards.key(number) == f"clip_{number}"
        for part in ("audio", "video", "mirrored"):
            mean, logvar = tensor(number, part).astype(np.float16)
            np.testing.assert_array_equal(vars(sample)[f"{part}_mean"], mean)
            np.testing.assert_array_equal(vars(sample)[f"{part}_logvar"], logvar)
    meta = shards[0].meta
    assert (meta["label"], meta["class"], meta["start"], meta["split"]) == ("cat", 0, 1.6, "test")
    assert "other" not in meta
    assert (shards[1].meta["path"], shards[1].meta["class"]) == ("clip 1", None)
    assert main(["verify", "--input", str(tmp_path / "set")]) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    (tmp_path / "set" / "shard-000001.json").unlink()
    assert imported(theirs, tmp_path / "set", autoencoder) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()} == before
    (theirs / "new.txt").touch()
    assert "was begun with other files" in refused(capsys, imported(theirs, tmp_path / "set", autoencoder))


def test_other_formats_layouts_and_names(autoencoder, tmp_path):
    folder = tmp_path / "theirs"
    (folder / "sub").mkdir(parents=True)
    parts = {part: torch.from_numpy(tensor(0, part)) for part in ("audio", "video", "mirrored")}
    torch.save(parts, folder / "sub" / "a.pt")
    joined = {part: value.flatten(0, 1)[None].to(torch.bfloat16).contiguous() for part, value in parts.items()}
    save_file(joined, folder / "b.safetensors")
    save_file({part: value[0].contiguous() for part, value in parts.items()}, folder / "c.safetensors")
    names = [text for part in parts for text in (f"--{part}", f"{{key}}:{part}")]
    assert imported(folder, tmp_path / "set", autoencoder, *names) == 0
    shards = ShardSet(tmp_path / "set")
    b, c, a = (decode_latents(shards[number].members) for number in range(3))
    assert shards.key(2) == "sub_a"
    np.testing.assert_array_equal(a.video_mean, c.video_mean)
    np.testing.assert_allclose(a.audio_mean, b.audio_mean, rtol=0.01)
    assert (a.video_logvar == -2).all()
    assert (c.video_logvar == LOGVAR_RANGE[0]).all()  # a mean alone is a latent without noise


def test_what_cannot_be_used_is_dropped_and_counted(theirs, autoencoder, tmp_path, capsys):
    np.save(theirs / "clip 0.audio.npy", np.full((2, *AUDIO), np.nan, np.float32))
    np.save(theirs / "clip 1.video.npy", np.full((2, *VIDEO), 1e6, np.float32))
    (theirs / "clip 2.audio.npy").write_bytes(b"\x93NUMPY no array")
    (theirs / "clip 3.mirrored.npy").unlink()
    (theirs / "clip 4.audio.npy").unlink()
    torch.save({"x": Exploit(tmp_path / "ran")}, theirs / "clip 4.audio.pt")
    (theirs / "readme.txt").touch()
    assert imported(theirs, tmp_path / "set", autoencoder) == 0
    rows = [json.loads(line) for line in (tmp_path / "set" / "dropped.jsonl").read_text().splitlines()]
    assert {row["path"]: row["reason"] for row in rows} == {
        "clip 3": "incomplete",
        "readme.txt": "not_a_latent",
        **{f"clip {number}": "unreadable_latents" for number in (0, 1, 2, 4)},
    }
    assert not (tmp_path / "ran").exists()
    assert "NaN" in next(row["detail"] for row in rows if row["path"] == "clip 0")
    out = capsys.readouterr().out
    assert "7 entries found = 5 taken + 2 dropped" in out
    assert "5 candidates = 1 taken + 4 dropped (4 unreadable_latents)" in out
    assert main(["verify", "--input", str(tmp_path / "set")]) == 0


class Exploit:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def statistics_of(part):
    values = np.stack([tensor(number, part) for number in range(COUNT)])  # (N, 2, C, H, W)
    if part == "video":
        values = np.concatenate([values, np.stack([tensor(number, "mirrored") for number in range(COUNT)])])
    std = np.sqrt(values[:, 0].var((0, 2, 3)) + np.exp(-2.0))
    return {"mean": values[:, 0].mean((0, 2, 3)).tolist(), "std": std.tolist()}


def test_normalised_latents_come_back_as_they_were(theirs, autoencoder, tmp_path, capsys):
    moments = {part: statistics_of(part) for part in ("audio", "video")}
    file = tmp_path / "statistics.json"
    file.write_text(json.dumps(moments))
    assert imported(theirs, tmp_path / "raw", autoencoder, "--statistics", file) == 0
    shutil.copytree(theirs, tmp_path / "normalised")
    for path in (tmp_path / "normalised").glob("*.npy"):
        mean, std = (
            np.array(moments["audio" if "audio" in path.name else "video"][name])[:, None, None]
            for name in ("mean", "std")
        )
        values = np.load(path)
        np.save(path, np.stack([(values[0] - mean) / std, values[1] - 2 * np.log(std)]))
    text = refused(capsys, imported(tmp_path / "normalised", tmp_path / "no", autoencoder, "--statistics", file))
    assert "are the latents normalised" in text
    options = ("--statistics", file, "--normalised")
    assert imported(tmp_path / "normalised", tmp_path / "back", autoencoder, *options) == 0
    raw, back = ShardSet(tmp_path / "raw"), ShardSet(tmp_path / "back")
    for number in range(COUNT):
        ours, again = (vars(decode_latents(shards[number].members)) for shards in (raw, back))
        for name, array in ours.items():
            np.testing.assert_allclose(again[name], array, atol=0.01)


def test_another_autoencoder_is_refused(theirs, autoencoder, tmp_path, capsys):
    stated = {**{part: statistics_of(part) for part in ("audio", "video")}, "autoencoder": "f" * 64}
    (tmp_path / "statistics.json").write_text(json.dumps(stated))
    options = ("--statistics", tmp_path / "statistics.json")
    text = refused(capsys, imported(theirs, tmp_path / "set", autoencoder, *options))
    assert "of another autoencoder (ffffffffffff…)" in text
    stated["autoencoder"] = pretrained.fingerprint(autoencoder)
    (tmp_path / "statistics.json").write_text(json.dumps(stated))
    assert imported(theirs, tmp_path / "set", autoencoder, *options) == 0
    np.save(theirs / "clip 5.video.npy", np.zeros((2, 4, 8, 8), np.float32))
    text = refused(capsys, imported(theirs, tmp_path / "other", autoencoder))
    assert "clip 5.video.npy: video latents of shape 2×4×8×8, not 4×4×4" in text
    assert "was begun with other things" in refused(capsys, imported(theirs, tmp_path / "set", autoencoder))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--audio", "sound"), "must contain {key} once"),
        (("--audio", "{key}.sound"), "holds no clip with all of {key}.sound"),
        (("--normalised",), "needs --statistics"),
        (("--statistics", "nowhere.json"), "No such file"),
        (("--statistics", __file__), "must be JSON such as"),
        (("--samples-per-shard", 0), "must be at least 1"),
    ],
)
def test_mistakes_are_one_line(theirs, autoencoder, tmp_path, capsys, options, text):
    assert text in refused(capsys, imported(theirs, tmp_path / "set", autoencoder, *options))


def test_without_mirrored_latents(theirs, autoencoder, tmp_path, capsys):
    for path in theirs.glob("*.mirrored.npy"):
        path.unlink()
    assert "mirrored" in refused(capsys, imported(theirs, tmp_path / "no", autoencoder))
    assert imported(theirs, tmp_path / "set", autoencoder, "--without-mirrored") == 0
    sample = decode_latents(ShardSet(tmp_path / "set")[0].members)
    np.testing.assert_array_equal(sample.mirrored_mean, sample.video_mean)


@pytest.mark.parametrize("own", ["audio", "video"])
def test_latents_of_one_modality_alone(own, theirs, tmp_path, capsys):
    """Files of the other modality are not taken; a statement about it is not needed."""
    weights = save_autoencoder(tmp_path / "weights", modalities=[own])
    parts = {"audio": ["audio"], "video": ["video", "mirrored"]}[own]
    stated = {own: {"mean": [3.0] * 4, "std": [2.0] * 4}}
    (tmp_path / "stated.json").write_text(json.dumps(stated))
    options = ["--statistics", tmp_path / "stated.json", "--normalised"]
    assert imported(theirs, tmp_path / "set", weights, *options) == 0
    shards = ShardSet(tmp_path / "set", "latents")
    manifest = shards.manifest
    assert manifest.shapes == {own: AUDIO if own == "audio" else VIDEO}
    assert manifest.reasons == {"not_a_latent": COUNT * (3 - len(parts))}
    for number in range(COUNT):
        sample = decode_latents(shards[number].members)
        assert list(sample.parts) == parts
        for part in parts:
            np.testing.assert_allclose(sample.parts[part][0], tensor(number, part)[0] * 2 + 3, rtol=1e-3)
    assert main(["verify", "--input", str(tmp_path / "set")]) == 0
