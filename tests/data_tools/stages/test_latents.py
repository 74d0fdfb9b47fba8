"""From clip sets to latent sets, with a real autoencoder of the smallest size."""

import json
import shutil

import numpy as np
import pytest
import torch

from data_tools.shard import main
from data_tools.stages import latents
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.pixels import to_signal
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.shards.clips import decode_clip
from mmldm_scale.shards.latents import decode_latents
from mmldm_scale.shards.reader import ShardSet
from tests.support.tiny_models.saved_autoencoder import MEDIA, save_autoencoder

pytestmark = pytest.mark.usefixtures("one_thread")


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def encode(clips, output, autoencoder, *options):
    texts = ["--input", clips, "--output", output, "--autoencoder", autoencoder, "--workers", 0, "--device", "cpu"]
    return main(["latents", *map(str, [*texts, *options])])


@pytest.fixture(scope="module")
def sets(good_videos, tmp_path_factory, one_thread):
    """A folder with ``autoencoder``, ``clips`` (15 in 4 shards) and ``latents`` made from both at batch size 3."""
    folder = tmp_path_factory.mktemp("sets")
    save_autoencoder(folder / "autoencoder")
    media = ["media.frames=4", "media.size=16"]
    overrides = [*media, "media.audio.sample_rate=8000", "media.audio.n_mels=16", "media.audio.f_max=4000"]
    source = ["clips", "--input", str(good_videos), "--output", str(folder / "clips"), "--workers", "0"]
    assert main([*source, *overrides, "stride=2", "samples_per_shard=4"]) == 0
    assert encode(folder / "clips", folder / "latents", folder / "autoencoder", "--batch-size", 3) == 0
    return folder


@torch.no_grad()
def test_latents_are_those_of_the_clips(sets):
    """Sample by sample against the autoencoder called by hand."""
    clips, found = ShardSet(sets / "clips"), ShardSet(sets / "latents", "latents")
    model = Autoencoder.from_pretrained(sets / "autoencoder")
    assert [found.key(i) for i in range(len(found))] == [clips.key(i) for i in range(len(clips))]
    for i in range(len(clips)):
        clip, sample = decode_clip(clips[i].members), decode_latents(found[i].members)
        frames, mirrored = (to_signal(f.copy())[None] for f in (clip.frames, clip.frames[:, :, ::-1]))
        image = AudioImage(MEDIA).encode(torch.from_numpy(clip.waveform)[None])
        straight, flipped = model.encode(frames, image), model.encode(mirrored, image)
        for array, tensor in (
            (sample.audio_mean, straight.audio.mean),
            (sample.audio_logvar, straight.audio.logvar),
            (sample.video_mean, straight.video.mean),
            (sample.video_logvar, straight.video.logvar),
            (sample.mirrored_mean, flipped.video.mean),
            (sample.mirrored_logvar, flipped.video.logvar),
        ):
            np.testing.assert_allclose(array, tensor[0].numpy(), rtol=2e-3, atol=2e-3)
        assert found[i].meta == clips[i].meta


def test_manifest_tells_the_origin_and_the_statistics(sets):
    shards = ShardSet(sets / "latents")
    manifest = shards.manifest
    assert (manifest.audio_shape, manifest.video_shape) == ((4, 2, 2), (4, 4, 4))
    assert manifest.media == MEDIA
    assert manifest.classes == ["cat", "dog"]
    assert manifest.autoencoder["fingerprint"] == pretrained.fingerprint(sets / "autoencoder")
    assert manifest.source["path"] == "../clips"
    samples = [decode_latents(shards[i].members) for i in range(len(shards))]
    mean = np.stack([s.audio_mean for s in samples]).astype(np.float64)
    variance = np.exp(np.stack([s.audio_logvar for s in samples]).astype(np.float64))
    expected = np.sqrt(mean.var((0, 2, 3)) + variance.mean((0, 2, 3)))
    np.testing.assert_allclose(manifest.statistics["audio"]["std"], expected, rtol=1e-9)
    assert main(["verify", "--input", str(sets / "latents")]) == 0


def test_the_batch_size_is_only_rounding(sets, tmp_path):
    assert encode(sets / "clips", tmp_path / "set", sets / "autoencoder", "--batch-size", 1) == 0
    one, other = ShardSet(sets / "latents"), ShardSet(tmp_path / "set")
    for i in range(len(one)):
        a, b = (decode_latents(shards[i].members) for shards in (one, other))
        for name in vars(a):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=2e-3, atol=1e-3)


def test_stopped_and_run_again_gives_the_same_bytes(sets, tmp_path, monkeypatch):
    real, calls = latents.Encoder.__call__, 0

    def stops(self, batch):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(latents.Encoder, "__call__", stops)
    arguments = (sets / "clips", tmp_path / "latents", sets / "autoencoder", "--batch-size", 3, "--workers", 2)
    assert encode(*arguments) == 130
    assert {path.stem for path in (tmp_path / "latents").glob("shard*")} == {"shard-000000"}
    assert encode(*arguments) == 0
    assert encode(*arguments) == 0
    shutil.copytree(sets / "latents", tmp_path / "first")
    # the folder of the clips is noted relative to the latents', which lie elsewhere here
    found, first = contents(tmp_path / "latents"), contents(tmp_path / "first")
    for name in ("manifest.json", "plan.json"):
        assert json.loads(found.pop(name))["autoencoder"] == json.loads(first.pop(name))["autoencoder"]
    assert found == first


def test_all_makes_both(good_videos, sets, overrides, tmp_path):
    arguments = ["all", "--input", good_videos, "--output", tmp_path, "--autoencoder", sets / "autoencoder"]
    assert main([*map(str, [*arguments, "--batch-size", 3, "--device", "cpu", "--workers", 0]), *overrides]) == 0
    assert contents(tmp_path / "clips") == contents(sets / "clips")
    assert contents(tmp_path / "latents") == contents(sets / "latents")


# --- what cannot work ------------------------------------------------------------------------------------------------


def refused(capsys, status):
    assert status == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("shard.py: ")]
    assert len(lines) == 1
    return lines[0]


def test_another_autoencoder_is_refused(sets, tmp_path, capsys):
    other = save_autoencoder(tmp_path / "other", seed=1)
    before = contents(sets / "latents")
    text = refused(capsys, encode(sets / "clips", sets / "latents", other))
    assert "was begun with another autoencoder" in text
    assert contents(sets / "latents") == before


def test_the_same_autoencoder_at_another_place_is_the_same(sets, tmp_path):
    before = contents(sets / "latents")
    shutil.copytree(sets / "autoencoder", tmp_path / "copy")
    assert encode(sets / "clips", sets / "latents", tmp_path / "copy", "--batch-size", 3) == 0
    assert contents(sets / "latents") == before


def test_other_clips_are_refused(sets, good_videos, overrides, tmp_path, capsys):
    clips = tmp_path / "clips"
    assert main(["clips", "--input", str(good_videos), "--output", str(clips), *overrides, "stride=4"]) == 0
    text = refused(capsys, encode(clips, sets / "latents", sets / "autoencoder"))
    assert "was begun with other clips" in text


def test_an_autoencoder_for_other_media_is_refused_before_any_work(sets, good_videos, overrides, tmp_path, capsys):
    media = MediaConfig(frames=4, size=16, fps=4, audio=MEDIA.audio)
    other = save_autoencoder(tmp_path / "other", media=media)
    text = refused(capsys, encode(sets / "clips", tmp_path / "set", other))
    assert "fps: the clips 10.0, the autoencoder 4" in text
    arguments = ["all", "--input", good_videos, "--output", tmp_path / "set", "--autoencoder", other]
    text = refused(capsys, main([*map(str, arguments), *overrides]))
    assert "fps: the configuration 10.0, the autoencoder 4" in text
    assert not (tmp_path / "set").exists()


def test_a_check_makes_nothing(sets, tmp_path, capsys):
    new = tmp_path / "set"
    assert encode(sets / "clips", new, sets / "autoencoder", "--check") == 0
    told = f"{new}: 15 clips of {sets / 'clips'} can be encoded with {sets / 'autoencoder'}\n"
    assert capsys.readouterr().out == told
    assert "no such folder" in refused(capsys, encode(sets / "clips", new, tmp_path / "nothing", "--check"))
    assert not new.exists()


def test_mistakes_are_one_line(sets, tmp_path, capsys):
    new, autoencoder = tmp_path / "set", sets / "autoencoder"
    assert "no such folder" in refused(capsys, encode(tmp_path / "nothing", new, autoencoder))
    assert "contains latents, but clips are required" in refused(capsys, encode(sets / "latents", new, autoencoder))
    assert "holds no weights of kind 'autoencoder'" in refused(capsys, encode(sets / "clips", new, sets / "clips"))
    assert "--batch-size 0" in refused(capsys, encode(sets / "clips", new, autoencoder, "--batch-size", 0))
    assert "holds clips" in refused(capsys, encode(sets / "clips", sets / "clips", autoencoder))
    if not torch.cuda.is_available():
        assert "no GPU" in refused(capsys, encode(sets / "clips", new, autoencoder, "--device", "cuda"))
    assert not new.exists()


def test_a_damaged_clip_stops_with_its_name(sets, tmp_path, capsys):
    clips = tmp_path / "clips"
    shutil.copytree(sets / "clips", clips)
    tar = clips / "shard-000001.tar"
    data = bytearray(tar.read_bytes())
    data[1000] ^= 1
    tar.write_bytes(data)
    text = refused(capsys, encode(clips, tmp_path / "latents", sets / "autoencoder", "--workers", 1))
    assert "sample cat_a-000008 in shard-000001: its bytes do not match" in text


def test_a_latent_that_float16_cannot_hold_is_an_error_that_names_it(sets, tmp_path, monkeypatch):
    real = latents.Encoder.__call__

    def wild(self, batch):
        samples = real(self, batch)
        samples[1].video_mean[0, 0, 0] = np.nan
        return samples

    monkeypatch.setattr(latents.Encoder, "__call__", wild)
    with pytest.raises(
        ValueError, match=r"sample cat_a-000002: video\.npy: largest magnitude .* cannot be stored as float16"
    ):
        encode(sets / "clips", tmp_path / "set", sets / "autoencoder")
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["plan.json"]


def test_faulty_latent_shards_are_made_again(sets, tmp_path):
    for name in ("clips", "latents"):
        shutil.copytree(sets / name, tmp_path / name)
    before = contents(tmp_path / "latents")
    (tmp_path / "latents" / "shard-000001.tar").write_bytes(before["shard-000001.tar"][:-512])
    options = ["--workers", "0", "--device", "cpu", "--batch-size", "3"]
    assert main(["repair", "--input", str(tmp_path / "latents"), *options]) == 0
    assert contents(tmp_path / "latents") == before


def test_latents_that_float16_would_blur_are_refused(sets, tmp_path, capsys, monkeypatch):
    """A channel that varies by thousandths around a hundred: float16 keeps it to a sixteenth there."""
    real = latents.Encoder.__call__

    def shifted(encoder, batch):
        samples = real(encoder, batch)
        for sample in samples:
            sample.video_mean[2] = 100 + 1e-3 * np.sign(sample.video_mean[2])
            sample.mirrored_mean[2] = 100 + 1e-3 * np.sign(sample.mirrored_mean[2])
            sample.video_logvar[2] = sample.mirrored_logvar[2] = -30
        return samples

    monkeypatch.setattr(latents.Encoder, "__call__", shifted)
    assert encode(sets / "clips", tmp_path / "set", sets / "autoencoder") == 2
    assert "float16 keeps channel 2 of the video latents only to" in capsys.readouterr().err


def test_squared_errors_are_those_of_float16():
    exact = latents.LatentSample(*(np.full((2, 3, 3), value, np.float32) for value in (1 / 3, 0, 1000.3, 0, 0, 0)))
    kept = decode_latents(latents.encode_latents(exact))
    errors = latents.squared_errors(exact, kept)
    np.testing.assert_allclose(errors["audio"], (float(np.float16(1 / 3)) - float(np.float32(1 / 3))) ** 2)
    np.testing.assert_allclose(errors["video"], (1000.5 - float(np.float32(1000.3))) ** 2)
