"""One modality alone, from clips to samples: an autoencoder, its latents and a DiT of video or of sound."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_tools.shard import main as shard
from mmldm_scale.cli import main
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import load
from mmldm_scale.media.decode import probe
from mmldm_scale.media.wav import decode_wav
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.flops import dit_macs
from mmldm_scale.sampling.description import DiTDescription
from mmldm_scale.shards.latents import decode_latents
from mmldm_scale.shards.reader import ShardSet
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.trainable import build_trainable
from tests.support.datasets.clip_sets import write_clips
from tests.support.run_results import Forks
from tests.support.tiny_models.autoencoder_trainable import train_arguments, write_data
from tests.support.tiny_models.tiny_autoencoder import MEDIA

pytestmark = pytest.mark.usefixtures("one_thread")

ALONE = {
    "video": ["model.modalities=[video]", "contrastive_weight=0"],
    "audio": ["model.modalities=[audio]", "contrastive_weight=0", "adversarial.weight=0"],
}
DIT = [
    *[f"model.{key}" for key in ("depth=1", "width=16", "heads=2", "context_tokens=2", "context_width=4")],
    *[f"training.{key}=8" for key in ("global_batch", "micro_batch", "log_every", "checkpoint_every")],
    *[f"training.{key}" for key in ("total_samples=16", "preview_every=16", "workers=0", "precision=fp32")],
    *["preview.samples=1", "preview.steps=2", "preview.decoding_steps=2", "context.kind=class"],
]
CONDITIONED = ["diffusion.audio_conditioned=0", "diffusion.video_conditioned=0"]
PARTS = {"video": ["video", "mirrored"], "audio": ["audio"]}


@dataclass
class Trained:
    """What was made of one modality; ``folder`` has clips, autoencoder, latents, dit and samples."""

    modality: str
    folder: Path


@pytest.fixture(scope="module", params=["video", "audio"])
def trained(request, forks: Forks, tmp_path_factory, one_thread) -> Trained:
    """An autoencoder of one modality, latents that it encoded, and a DiT that was trained on these."""
    modality, data = request.param, write_data(tmp_path_factory.mktemp(request.param))
    held_out = write_clips(data / "held_out", 8, first=20)

    def train(*arguments: str) -> None:
        status, output = forks(1, "command", str(data), "mmldm", *arguments)
        assert status == 0, output

    validation = [f"validation=[{held_out}]", "training.validation_samples=4"]
    train(*train_arguments(data, data / "autoencoder", *ALONE[modality], *validation))
    encode = ["latents", "--output", data / "latents", "--autoencoder", data / "autoencoder", "--workers", 0]
    assert shard([*map(str, encode), "--input", str(data / "clips"), "--device", "cpu"]) == 0
    preset = ["--preset", modality, f"shards={data / 'latents'}", f"run={data / 'dit'}"]
    train("train", "dit", *preset, *DIT)
    return Trained(modality, data)


def tags(folder: Path) -> set[str]:
    """Return the tags of pictures, videos and sounds in a folder of TensorBoard files."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "audio": 0}).Reload()
    return {tag for kind in ("images", "audio") for tag in events.Tags()[kind]}


def test_the_autoencoder_learns_validates_and_shows_its_modality_alone(trained):
    run, own = trained.folder / "autoencoder", trained.modality
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    terms = {key.removeprefix("term/") for record in records for key in record if key.startswith("term/")}
    assert terms == {"mse", f"kl_{own}", "classification"} | ({"adversarial"} if own == "video" else set())
    losses = {key for record in records for key in record if key.startswith(("loss/", "validation/loss/"))}
    assert losses == {f"loss/{own}", f"validation/loss/{own}"}
    names = load_file(sorted(run.glob("checkpoints/*/weights/model.safetensors"))[-1]).keys()
    other = {"video": "audio", "audio": "video"}[own]
    assert not [name for name in names if other in name]
    assert any(name.startswith(f"{own}_encoder.") for name in names)
    words = {"video": "frames_original", "audio": "sound_original"}
    shown = " ".join(tags(run / "tensorboard"))
    assert words[own] in shown
    assert words[other] not in shown


@torch.no_grad()
def test_latents_are_those_of_the_clips(trained):
    own, found = trained.modality, ShardSet(trained.folder / "latents", "latents")
    model = Autoencoder.from_pretrained(trained.folder / "autoencoder")
    assert found.manifest.shapes == model.shapes == {own: {"video": (4, 4, 4), "audio": (4, 2, 2)}[own]}
    assert found.manifest.statistics.keys() == {own}
    samples = [decode_latents(found[i].members) for i in range(len(found))]
    assert all(list(sample.parts) == PARTS[own] for sample in samples)
    means = np.concatenate([mean.reshape(4, -1) for sample in samples for mean, _ in sample.parts.values()], axis=1)
    np.testing.assert_allclose(found.manifest.statistics[own]["mean"], means.astype(np.float64).mean(1), rtol=1e-5)
    assert shard(["verify", "--input", str(trained.folder / "latents"), "--workers", "0"]) == 0
    assert shard(["stats", "--input", str(trained.folder / "latents"), "--output", str(trained.folder / "stats")]) == 0
    assert json.loads((trained.folder / "stats/stats.json").read_text())["latents"].keys() == {own}


def test_the_dit_has_the_tokens_and_layers_of_its_modality_alone(trained):
    own, latents = trained.modality, trained.folder / "latents"
    settings = [f"shards={latents}", f"model.modalities=[{own}]", *CONDITIONED, *DIT]
    trainable = build_trainable(load(DiTTraining, overrides=settings))
    sample = trainable.dataset[3]
    assert sample.keys() == {own, f"{own}_noise", f"{own}_given", "time", "label"}
    positions = sample[own][0].numel()
    dit = trainable.module.dit
    assert dit.get_submodule(f"embed_{own}").count == positions + 1  # and [EOS]
    assert {name for name, _ in dit.named_children() if "_" in name} == {
        *(f"{part}_{own}" for part in ("embed", "final")),
        *("embed_context", "embed_class"),
    }
    tokens, width = 2 + 1 + positions, 16  # context, [EOS], the latent
    linear = 12 * width**2 * tokens + 6 * width**2  # the block
    linear += 256 * width + width**2 + 2 * 4 * width + 3 * 4 * width * positions + 2 * width**2
    assert dit_macs(dit.config, *[dit_shape(found, own) for found in ("audio", "video")]).linear == linear
    batch = {name: torch.stack([value] * 2) for name, value in sample.items()}
    output = trainable.module(batch)
    assert torch.equal(output.loss, output.metrics[f"loss/{own}"])  # the one error, not half of it
    shown = tags(trained.folder / "dit/tensorboard")
    assert {tag.partition("/")[2] for tag in shown} >= {"video": {"0/video"}, "audio": {"0/sound"}}[own]
    assert not any({"video": "sound", "audio": "video"}[own] in tag for tag in shown)


def dit_shape(modality: str, own: str) -> tuple[int, int, int] | None:
    return {"video": (4, 4, 4), "audio": (4, 2, 2)}[own] if modality == own else None


def test_samples_are_videos_without_sound_or_sound_files(trained, capsys):
    output, own = trained.folder / "samples", trained.modality
    job = ["sample", "--checkpoint", str(trained.folder / "dit"), "--output", str(output), "--device", "cpu"]
    fast = ["steps=2", "decoding.steps=2", "batch_size=2", "--num-samples", "3"]
    assert main([*job, "--task", "svg", "--label", "tone", *fast]) == 0
    files = sorted(output.glob("svg_0*.{}".format({"video": "mp4", "audio": "wav"}[own])))
    assert [file.stem for file in files] == [f"svg_{i:06d}" for i in range(3)]
    if own == "video":
        info = probe(files[0])
        assert (info.has_audio, info.width, info.height) == (False, MEDIA.size, MEDIA.size)
    else:
        assert decode_wav(files[0].read_bytes()).shape == (MEDIA.audio_samples,)
    page = (output / "index.html").read_text()
    assert all(f'"name": "{file.stem}", "results": [["{file.suffix[1:]}", ' in page for file in files)
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[: len(whole) // 2])
    assert main([*job, "--task", "svg", "--label", "tone", *fast, "--verify"]) == 0
    assert len(files[1].read_bytes()) > 0.9 * len(whole)  # made again
    capsys.readouterr()
    assert main([*job, "--task", "a2v", "--input", str(output), *fast]) == 2
    error = capsys.readouterr().err
    assert f"task a2v: the model in {DiTDescription.read(trained.folder / 'dit').folder} has {own} alone" in error


def test_reconstructions_and_exports(trained):
    own, folder = trained.modality, trained.folder
    job = ["reconstruct", "--checkpoint", folder / "autoencoder", "--input", folder / "clips", "--device", "cpu"]
    assert main([*map(str, job), "--output", str(folder / "out"), "--num-samples", "2", "decoding.steps=2"]) == 0
    metrics = json.loads((folder / "out/reconstruction.json").read_text())["metrics"]
    assert (
        metrics.keys()
        == {
            "video": {"psnr", "ssim"},
            "audio": {"audio_image_psnr", "image_mel_l1", "mel_l1", "mrstft"},
        }[own]
    )
    assert len([*(folder / "out").glob({"video": "*.mp4", "audio": "*.wav"}[own])]) == 4
    export = ["export", "--checkpoint", folder / "autoencoder", "--output", folder / "export", "--format", "diffusers"]
    assert main([*map(str, export)]) == 0
    assert Autoencoder.from_pretrained(folder / "export/autoencoder").modalities == (own,)
    assert UNet2DConditionModel.from_pretrained(folder / "export", subfolder="unet")


def test_a_set_of_another_modality_is_refused_in_one_line(trained):
    own = trained.modality
    other = {"video": "audio", "audio": "video"}[own]
    base = [f"shards={trained.folder / 'latents'}", *DIT, *CONDITIONED]
    for names in (f"[{other}]", "[audio, video]"):
        message = rf"^model.modalities: \[{names[1:-1]}\]: must be \[{own}\], whose latents the shards hold$"
        with pytest.raises(UserError, match=message):
            build_trainable(load(DiTTraining, overrides=[*base, f"model.modalities={names}"]))


PATHS = ["shards=x", "kl_vae=y"]


@pytest.mark.parametrize(
    ("schema", "overrides", "message"),
    [
        (AutoencoderTraining, ["model.modalities=[video,audio]"], r"model.modalities: \[video, audio\]: must be"),
        (AutoencoderTraining, ["model.modalities=[]"], r"model.modalities: \[\]: must be \[audio, video\], \[video\]"),
        (
            AutoencoderTraining,
            ["model.modalities=[video]"],
            "contrastive_weight: 0.1: must be 0 with model",
        ),
        (AutoencoderTraining, ALONE["audio"][:2], "adversarial.weight: 0.1: must be 0 with model.modalities="),
        (AutoencoderTraining, [*ALONE["video"], "loss_weights.video=0"], "loss_weights.video: 0: must be greater"),
        (DiTTraining, ["model.modalities=[audio]"], "diffusion.audio_conditioned: 0.05: must be 0 with"),
        (
            DiTTraining,
            ["model.modalities=[video]", CONDITIONED[0]],
            "diffusion.video_conditioned: 0.05: must be",
        ),
        (
            DiTTraining,
            ["model.modalities=[video]", *CONDITIONED, "contrastive.weight=1"],
            "contrastive.weight: 1: ",
        ),
        (
            DiTTraining,
            ["model.modalities=[video]", *CONDITIONED, "model.continuation=true"],
            "model.continuation: true",
        ),
    ],
)
def test_settings_that_need_both_are_refused_in_one_line(schema, overrides, message):
    paths = PATHS if schema is AutoencoderTraining else PATHS[:1]
    with pytest.raises(UserError, match=message) as error:
        load(schema, overrides=[*paths, *overrides])
    assert "\n" not in str(error.value)
