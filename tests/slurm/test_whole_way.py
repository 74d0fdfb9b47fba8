"""From videos to samples by the scripts of slurm/, submitted as users do, with a model that is done in seconds.

Each stage is a job on the two nodes, unchanged but for sbatch's own options (one task a node instead of eight) and the
arguments that make the model small. A later stage's test fails with its fixture if an earlier one fails.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from safetensors.torch import load_file

from data_tools import shard
from data_tools.corpus import make_corpus
from mmldm_scale.config import KLVAEConfig
from mmldm_scale.media.decode import probe
from mmldm_scale.models.autoencoder import kl_vae

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

TWO_TASKS = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")
ONE_TASK = ("--cpus-per-task=1",)
LIMIT = 180  # seconds that a job may take on a busy machine

CLIPS = """
media:
  frames: 4
  size: 32
  audio: {sample_rate: 8000, n_fft: 256, win_length: 256, hop_length: 100, n_mels: 32, f_max: 4000}
stride: 4
samples_per_shard: 4
"""
TRAINING = """
training: {total_samples: 16, global_batch: 4, micro_batch: 2, log_every: 4, checkpoint_every: 16, preview_every: 16,
           ema_lengths: [0.063], workers: 1}
"""
KL_VAE = """
discriminator: {width: 8, layers: 2}
adversarial: {after: 4, ramp: 8}
"""
AUTOENCODER = """
model:
  latent_channels: 4
  audio_encoder: {width: 8, multipliers: [1, 1], blocks: 1, heads: 2}
  video_encoder: {width: 8, multipliers: [1], blocks: 1, heads: 2}
  semantic_width: 16
  decoder: {width: 8, multipliers: [1, 2], blocks: 1, attention: [true, false], heads: 2}
discriminator: {width: 8, multipliers: [1, 1], attention: 1, heads: 2}
contrastive_batch: 4
preview: {steps: 2}
"""
DIT = """
model: {depth: 1, width: 16, heads: 2, context_tokens: 2, context_width: 4}
preview: {samples: 1, steps: 2, decoding_steps: 2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("whole_way")


@pytest.fixture(scope="module")
def submit(cluster, folder):
    """Submit a script with its arguments, wait for it, and return what it printed."""

    def run(name: str, *arguments: object, options: tuple[str, ...] = TWO_TASKS, array: bool = False) -> str:
        job = cluster.submit(f"slurm/{name}.sh", *arguments, options=options, array=array)
        result = cluster.wait(job, LIMIT)
        assert result.state == "COMPLETED", result.output
        return result.output

    return run


@pytest.fixture(scope="module")
def clips(folder):
    make_corpus(folder / "videos", videos=4, seconds=1.2, size=32, fps=10)
    config = yaml(folder / "clips.yaml", CLIPS)
    arguments = ["clips", "--source", "folder", "--workers", "1", "--config", config]
    assert shard.main([*arguments, "--input", str(folder / "videos"), "--output", str(folder / "clips")]) == 0
    return folder / "clips"


@pytest.fixture(scope="module")
def fine_tuned(submit, folder, clips):
    torch.manual_seed(0)
    kl_vae.build(KLVAEConfig(channels=[8, 8, 8], blocks=1)).save_pretrained(folder / "published")
    run = folder / "kl_vae"
    config = yaml(folder / "kl_vae.yaml", KL_VAE + TRAINING)
    submit("train_kl_vae", "--config", config, f"shards={clips}", f"kl_vae={folder / 'published'}", f"run={run}")
    return run


@pytest.fixture(scope="module")
def autoencoder(submit, folder, clips, fine_tuned):
    run = folder / "autoencoder"
    config = yaml(folder / "autoencoder.yaml", AUTOENCODER + TRAINING)
    submit("train_autoencoder", "--config", config, f"shards={clips}", f"kl_vae={fine_tuned}", f"run={run}")
    return run


@pytest.fixture(scope="module")
def latents(submit, folder, clips, autoencoder):
    output = folder / "latents"
    arguments = ("--input", clips, "--output", output, "--autoencoder", autoencoder, "--batch-size", 4, "--workers", 1)
    submit("encode_latents", *arguments, options=ONE_TASK)
    return output


@pytest.fixture(scope="module")
def train_dit(submit, folder, latents):
    def train(preset: str) -> Path:
        run = folder / f"dit_{preset}"
        if not run.exists():
            config = yaml(folder / "dit.yaml", DIT + TRAINING)
            submit(f"train_dit_{preset}", "--config", config, f"shards={latents}", f"run={run}")
        return run

    return train


def yaml(file: Path, text: str) -> str:
    file.write_text(text)
    return str(file)


def assert_trained(run: Path, weights: str = "model.safetensors") -> None:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [record["samples_seen"] for record in records] == [4, 8, 12, 16]
    assert all(np.isfinite(record["loss"]) for record in records)
    state = load_file(run / "checkpoints/step-000000000016/weights" / weights)
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert list((run / "tensorboard").iterdir())


def test_a_kl_vaes_decoder_is_fine_tuned(fine_tuned):
    assert_trained(fine_tuned, "vae/diffusion_pytorch_model.safetensors")


def test_the_autoencoder_is_trained(autoencoder):
    assert_trained(autoencoder)


def test_its_latents_are_webdataset_shards(latents):
    shards = sorted(map(str, latents.glob("shard-*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    assert len(samples) == json.loads((latents / "manifest.json").read_text())["samples"] == 12
    assert len({sample["__key__"] for sample in samples}) == 12


@pytest.mark.parametrize("preset", ["S", "B", "L"])
def test_a_dit_is_trained(train_dit, preset):
    assert_trained(train_dit(preset))


def test_an_array_of_jobs_samples_videos_with_sound(submit, folder, train_dit):
    output = folder / "samples"
    task = ("--checkpoint", train_dit("S"), "--task", "svg", "--num-samples", 3, "--output", output)
    options = (*ONE_TASK, "--array=0-1")
    printed = submit("sample", *task, "steps=2", "decoding.steps=2", "batch_size=1", options=options, array=True)
    assert printed.count(f"of 3 samples are in {output}") == 2
    videos = sorted(output.glob("*.mp4"))
    assert [video.name for video in videos] == [f"svg_{index:06d}.mp4" for index in range(3)]
    assert all(probe(video).has_audio for video in videos)
    assert (output / "index.html").is_file()
