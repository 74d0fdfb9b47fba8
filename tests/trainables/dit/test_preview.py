"""Previews of a DiT in training: samples of its averaged weights; and the trace of ``profile_steps``."""

import gzip
import json
import shutil
import wave
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DecodingConfig, Sampling, load
from mmldm_scale.sampling.description import DiTDescription
from mmldm_scale.sampling.pipeline import Pipeline
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.trainable import build_trainable
from mmldm_scale.training.loop import Trainer
from mmldm_scale.training.resilience import signals
from mmldm_scale.training.resilience.signals import StopRequest
from tests.support.datasets import latent_sets
from tests.support.tiny_models.weights_folders import TinyModel, save_model

TINY = ["model.depth=1", "model.width=16", "model.heads=2", "model.context_tokens=2", "model.context_width=4"]
SIZES = [f"training.{name}=16" for name in ("global_batch", "micro_batch", "log_every", "checkpoint_every")]
STEPS = ["training.total_samples=96", "training.preview_every=48", "training.learning_rate=0.01", "training.workers=0"]
PREVIEW = ["preview.samples=4", "preview.steps=2", "preview.decoding_steps=2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> TinyModel:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def latents(tmp_path, model, monkeypatch) -> Path:
    """A set of latents with the shapes and the fingerprint of the tiny autoencoder."""
    description = DiTDescription.read(model.dit)
    monkeypatch.setattr(latent_sets, "AUDIO", description.audio_shape)
    monkeypatch.setattr(latent_sets, "VIDEO", description.video_shape)
    fields = {"media": model.media, "autoencoder": description.autoencoder}
    shapes = {"audio_shape": description.audio_shape, "video_shape": description.video_shape}
    return latent_sets.write_latents(tmp_path / "latents", **fields, **shapes)


@pytest.fixture
def restored_handlers() -> Iterator[None]:
    yield
    signals.restore_handlers()


def train(latents: Path, run: Path, world, *overrides: str) -> dict[int, float]:
    """Train in this process; return the losses by samples seen."""
    settings = [f"shards={latents}", f"run={run}", "training.precision=fp32", *TINY, *SIZES, *STEPS, *PREVIEW]
    config = load(DiTTraining, overrides=[*settings, *overrides])
    run.mkdir()
    torch.manual_seed(0)
    assert not Trainer(build_trainable(config), config.training, run, world).run(StopRequest())
    records = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return {record["samples_seen"]: record["loss"] for record in records}


def test_a_run_shows_samples_of_its_averaged_weights_which_do_not_change_it(
    latents, model, tmp_path, alone, capsys, restored_handlers
) -> None:
    run = tmp_path / "run"
    losses = train(latents, run, alone, "training.profile_steps=2")
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "audio": 0})
    events.Reload()
    clip = Pipeline.from_pretrained(run, Sampling(steps=2, decoding=DecodingConfig(steps=2))).generate("svg", [1])[0]
    for index in (0, 1):
        assert [event.step for event in events.Images(f"svg/{index}/video")] == [48, 96]
    for tag in ("a2v/0/video", "v2a/0/given/pictures"):
        assert [event.step for event in events.Images(tag)] == [48, 96]
    for tag in ("a2v/0/given/sound", "v2a/0/sound"):
        assert [event.step for event in events.Audio(tag)] == [48, 96]
    assert not {"a2v/0/sound", "v2a/0/given/sound"} & {*events.Tags()["audio"]}
    square = np.array(Image.open(BytesIO(events.Images("svg/1/pictures")[1].encoded_image_string))).astype(int)
    rows = np.split(square, 2)  # (2·S, 2·S, 3) -> 2 of (S, 2·S, 3)
    shown = np.stack([picture for row in rows for picture in np.split(row, 2, axis=1)])  # (F, S, S, 3)
    assert np.abs(shown - clip.frames).max() <= 1
    with wave.open(BytesIO(events.Audio("svg/1/sound")[1].encoded_audio_string)) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (8000, 3200)
    assert not (run / "preview.tmp").exists()

    (trace,) = (run / "profile").glob("*.json.gz")
    assert trace.name == "step-000000000080.json.gz"  # three steps of warm-up, two of profiling
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert "aten::" in trace.with_name("step-000000000080.txt").read_text()
    assert "profiled 2 steps" in capsys.readouterr().err

    losses = {seen: loss for seen, loss in losses.items() if seen <= 48}
    short = "training.total_samples=48"
    assert train(latents, tmp_path / "unseen", alone, short, "preview.samples=0") == losses


def test_a_missing_or_changed_autoencoder_is_reported(
    latents, model, tmp_path, alone, capsys, restored_handlers
) -> None:
    short, often, moved = "training.total_samples=48", "training.preview_every=16", tmp_path / "moved"
    losses = train(latents, tmp_path / "unseen", alone, short, "preview.samples=0")
    other = shutil.copytree(model.autoencoder, tmp_path / "other")
    (other / "more.txt").write_text("changes the fingerprint")
    capsys.readouterr()
    assert train(latents, tmp_path / "another", alone, short, often, f"preview.autoencoder={other}") == losses
    (message,) = messages(capsys)
    assert message.startswith(f"previews show no samples from here on: {other}")

    model.autoencoder.rename(moved)
    try:
        assert train(latents, tmp_path / "lost", alone, short, often) == losses
        at_start, at_first_preview = messages(capsys)
        assert at_start.startswith(f"previews show no samples: {model.autoencoder}: no such folder")
        reason = f"{model.autoencoder}: no such folder"
        assert at_first_preview.startswith(f"previews show no samples from here on: {reason}")
        assert train(latents, tmp_path / "found", alone, short, f"preview.autoencoder={moved}") == losses
        assert not messages(capsys)
        with pytest.raises(UserError, match=f"^preview.autoencoder: {tmp_path}/nowhere: no such folder"):
            train(latents, tmp_path / "mistaken", alone, f"preview.autoencoder={tmp_path}/nowhere")
    finally:
        moved.rename(model.autoencoder)


def messages(capsys) -> list[str]:
    """Return the printed lines about missing samples."""
    return [line for line in capsys.readouterr().err.splitlines() if "no samples" in line]
