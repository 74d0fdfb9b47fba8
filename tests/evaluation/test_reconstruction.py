"""``mmldm reconstruct``: what it measures, shows and refuses."""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.rng import generator
from mmldm_scale.config import DecodingConfig
from mmldm_scale.evaluation import arguments, reconstruction
from mmldm_scale.evaluation.metrics import METRICS, register
from mmldm_scale.evaluation.metrics.clip_metric import ClipMetric
from mmldm_scale.evaluation.metrics.metric import MetricBatch
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.decode import probe
from mmldm_scale.media.vocoder import load_vocoder
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.shards.clips import decode_clip
from mmldm_scale.shards.reader import ShardSet
from tests.support.datasets.clip_sets import write_clips
from tests.support.tiny_models import tiny_autoencoder
from tests.support.tiny_models.backbones import write_alexnet

NAMES = ["psnr", "ssim", "audio_image_psnr", "image_mel_l1", "mel_l1", "mrstft"]


def reconstruct(autoencoder: Path, clips: Path, output: Path, *more: object, number: int = 3) -> dict:
    parser = argparse.ArgumentParser()
    arguments.add_reconstruct_arguments(parser)
    fixed = ["--checkpoint", autoencoder, "--input", clips, "--num-samples", number, "--output", output]
    options = [*fixed, "--device", "cpu", "decoding.steps=2", "batch_size=2", *more]
    assert reconstruction.run(parser.parse_intermixed_args([str(part) for part in options])) == 0
    return json.loads((output / reconstruction.RESULTS).read_text())


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips") / "clips", 6)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    tiny_autoencoder.opened(tiny_autoencoder.build(classes=["rain", "wind"])).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def measured(autoencoder, clips, tmp_path_factory) -> tuple[dict, Path]:
    output = tmp_path_factory.mktemp("out") / "reconstruction"
    return reconstruct(autoencoder, clips, output, "--swap-semantics", "--lossless"), output


def test_results_say_what_was_measured(measured, autoencoder, clips):
    results, _ = measured
    assert results["samples"] == 3
    assert results["checkpoint"]["fingerprint"] == pretrained.fingerprint(autoencoder)
    assert results["clips"]["fingerprint"] == ShardSet(clips, "clips").fingerprint
    assert results["settings"]["decoding"]["steps"] == 2
    rows = results["by_clip"]
    assert [row["key"] for row in rows] == [f"clip_{i}" for i in (0, 2, 4)]
    for name in ("metrics", "ceiling", "swapped_semantics"):
        assert list(results[name]) == NAMES
        for metric, value in results[name].items():
            assert value == pytest.approx(np.mean([row[name][metric] for row in rows]))
    assert [row["semantics_of"] for row in rows] == [f"clip_{i}" for i in (2, 4, 0)]
    assert results["units"]["psnr"] == "dB"
    assert results["directions"]["mel_l1"] == "lower"


def picture_psnr(samples: Tensor, reference: Tensor) -> float:
    """Mean PSNR in dB of pictures (N, 3, S, S) in [-1, 1]."""
    return float((10 * (4 / (samples - reference).double().square().mean(dim=(1, 2, 3))).log10()).mean())


def test_metrics_are_those_of_what_the_model_decodes(measured, autoencoder, clips):
    """One clip, by the model's own doors: metric by metric what its pictures and its sound are worth."""
    model, clip = Autoencoder.from_pretrained(autoencoder), decode_clip(ShardSet(clips)[4].members)
    frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)[None] / 127.5 - 1  # (1, F, 3, S, S)
    audio_image, waveform = AudioImage(tiny_autoencoder.MEDIA), torch.from_numpy(clip.waveform)[None]
    image, mels = audio_image.encode(waveform), audio_image.decibels(waveform)
    posteriors = model.encode(frames, image)
    noise = [
        torch.from_numpy(generator(0, f"reconstruct/{name}", 4).standard_normal(shape, dtype=np.float32))[None]
        for name, shape in (("audio", model.noise_shape), ("video", (4, *model.noise_shape)))
    ]
    decoded = model.decode(posteriors.audio.mean, posteriors.video.mean, *noise, DecodingConfig(steps=2))
    row = measured[0]["by_clip"][2]
    kept = ShardSet(measured[1] / "lossless/reconstructed", "samples")
    assert [kept.key(i) for i in range(3)] == ["clip_0", "clip_2", "clip_4"]
    kept_frames = torch.from_numpy(decode_clip(kept[2].members).frames).permute(0, 3, 1, 2) / 127.5 - 1
    assert (kept_frames - decoded[0][0]).abs().max() < 2 / 127.5
    sound = load_vocoder(None, tiny_autoencoder.AUDIO)(audio_image.to_decibels(decoded[1]), waveform.shape[1])
    expected = {
        "psnr": picture_psnr(decoded[0][0], frames[0]),
        "audio_image_psnr": picture_psnr(decoded[1], image),
        "image_mel_l1": float((audio_image.to_decibels(decoded[1]) - mels).abs().mean()),
        "mel_l1": float((audio_image.decibels(sound) - mels).abs().mean()),
    }
    assert {name: row["metrics"][name] for name in expected} == pytest.approx(expected, rel=1e-3)
    alone = kl_vae.decode(model.kl_vae, kl_vae.encode(model.kl_vae, frames[0]))
    assert row["ceiling"]["psnr"] == pytest.approx(picture_psnr(alone.detach(), frames[0]), rel=1e-4)


def test_what_is_seen_and_heard(measured):
    output = measured[1]
    with Image.open(output / "strip.png") as strip:
        assert strip.size == (5 * 32, 3 * 3 * 32)  # four frames and the audio image; three clips, three ways each
    files = sorted(file.name for file in output.glob("*.mp4"))
    assert files == [f"{index:06d}_{name}.mp4" for index in (0, 2, 4) for name in ("original", "restored")]
    info = probe(output / files[1])
    assert (info.width, info.fps, info.sample_rate) == (32, 10, 8000)
    assert not list(output.rglob("*.tmp"))


def test_a_clip_is_measured_the_same_whatever_the_others(measured, autoencoder, clips, tmp_path):
    rows = {row["key"]: row["metrics"] for row in measured[0]["by_clip"]}
    again = reconstruct(autoencoder, clips, tmp_path / "out", "batch_size=4", "decoding.pictures=3", number=6)
    for row in again["by_clip"]:
        if row["key"] in rows:
            assert row["metrics"] == pytest.approx(rows[row["key"]], rel=1e-3)
    assert "swapped_semantics" not in again
    other = reconstruct(autoencoder, clips, tmp_path / "seed", "seed=1")
    assert other["metrics"]["psnr"] != pytest.approx(again["metrics"]["psnr"], rel=1e-4)


def test_lpips_is_measured_with_its_weights(autoencoder, clips, tmp_path):
    backbone = write_alexnet(tmp_path / "alexnet.pth")
    results = reconstruct(autoencoder, clips, tmp_path / "out", f"lpips={backbone}", number=1)
    assert list(results["metrics"]) == ["psnr", "ssim", "lpips", *NAMES[2:]]
    assert results["metrics"]["lpips"] > 0


class FrameError(ClipMetric):
    """A metric written outside the package: the frames' mean absolute error."""

    name = "frame_error"
    unit = "of 2"
    direction = "lower"
    needs = ("frames",)

    def clip_values(self, batch: MetricBatch) -> Tensor:
        return (batch.samples["frames"] - batch.reference["frames"]).abs().flatten(1).mean(dim=1)


def test_a_metric_registered_outside_the_package_is_measured(measured, autoencoder, clips, tmp_path, capsys):
    register(FrameError)
    try:
        results = reconstruct(autoencoder, clips, tmp_path / "out")
    finally:
        METRICS.pop(FrameError.name)
    assert list(results["metrics"]) == [*NAMES, "frame_error"]
    assert "frame_error ↓ (of 2)" in capsys.readouterr().out
    assert results["metrics"]["frame_error"] == np.mean([row["metrics"]["frame_error"] for row in results["by_clip"]])
    assert {name: results["metrics"][name] for name in NAMES} == measured[0]["metrics"]


def test_semantics_reach_the_metrics_and_nothing_else_changes(measured):
    for row in measured[0]["by_clip"]:
        assert row["swapped_semantics"] != pytest.approx(row["metrics"], rel=1e-4)


def refusal(*args: object, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        reconstruct(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals(measured, autoencoder, clips, tmp_path):
    out = tmp_path / "out"
    assert "--num-samples 7: must be 1 to 6" in refusal(autoencoder, clips, out, number=7)
    assert "--num-samples 1: must be 2 to 6" in refusal(autoencoder, clips, out, "--swap-semantics", number=1)
    assert "steps: 1001: must be from 1 to" in refusal(autoencoder, clips, out, "decoding.steps=1001")
    assert "holds reconstruction.json already" in refusal(autoencoder, clips, measured[1])
    assert "nowhere: cannot be read" in refusal(autoencoder, clips, out, "lpips=nowhere")
    tiny_autoencoder.build(semantics=False).save_pretrained(tmp_path / "plain")
    assert "was trained without the other modality's" in refusal(tmp_path / "plain", clips, out, "--swap-semantics")
    described = json.loads((autoencoder / pretrained.CONFIG).read_text())
    described["media"]["fps"] = 4
    shutil.copytree(autoencoder, tmp_path / "other")
    (tmp_path / "other" / pretrained.CONFIG).write_text(json.dumps(described))
    pretrained.seal(tmp_path / "other")
    assert "fps: the clips 10, the autoencoder 4" in refusal(tmp_path / "other", clips, out)
    (tmp_path / "file").write_text("")
    assert "cannot be used as output folder" in refusal(autoencoder, clips, tmp_path / "file" / "out")


def test_a_damaged_clip_is_named(autoencoder, clips, tmp_path):
    shutil.copytree(clips, tmp_path / "clips")
    tar = tmp_path / "clips" / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[data.index(b"clip_4.00.jpg") + 700] ^= 1
    tar.write_bytes(data)
    assert "sample clip_4" in refusal(autoencoder, tmp_path / "clips", tmp_path / "out")
    assert not (tmp_path / "out" / reconstruction.RESULTS).exists()
