"""The recipe for Landscape, from its page: every command as it stands there, in small, a job of each kind on two nodes.

Of sbatch's own options only the sizes are others (one task a node instead of eight). Jobs that do not differ from these
in what SLURM has to do with them (test_scripts.py and test_shard_array.py submit them) run here without it. A later
stage's test fails with its fixture if an earlier one fails. The other recipes are in tests/docs/test_recipes.py.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from safetensors.torch import load_file

from mmldm_scale.media.decode import probe
from tests.support.recipes import ROOT, carry_out, commands, job, put_videos, small_world

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

PAGE = ROOT / "docs/recipes/landscape.md"
JOBS = {  # the scripts that are submitted, and with which sizes
    "slurm/train_autoencoder.sh": ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1"),
    "slurm/sample.sh": ("--array=0-1", "--cpus-per-task=1"),
}
LIMIT = 180  # seconds that a job may take on a busy machine
VIDEOS = [
    *("train/fire_crackling_1_1.mp4", "train/raining_2_1.mp4", "train/thunder_3_1.mp4"),
    *("test/raining_4_1.mp4", "test/thunder_5_1.mp4"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A project in small, with what the recipe says is needed."""
    folder = small_world(tmp_path_factory.mktemp("project"))
    put_videos(folder / "data/landscape/videos", VIDEOS)
    return folder


@pytest.fixture(scope="module")
def follow(cluster, forks, world) -> Callable[[str], list[str]]:
    """Run the page's next commands up to and with the one that mentions a word; return what each printed."""
    left = commands(PAGE)

    def submit(words: list[str]) -> str:
        options, script, arguments = job(world, words)
        array = "sample" in script
        number = cluster.submit(script, *arguments, options=(*options, *JOBS[script]), array=array, cwd=world)
        result = cluster.wait(number, LIMIT)
        assert result.state == "COMPLETED", f"{' '.join(words)}\n{result.output}"
        return result.output

    def follow_to(mark: str) -> list[str]:
        printed = []
        while True:
            words = left.pop(0)
            printed.append(submit(words) if JOBS.keys() & set(words) else carry_out(forks, world, words))
            if mark in words:
                return printed

    return follow_to


@pytest.fixture(scope="module")
def clips(follow, world):
    follow("stats")
    return world / "data/landscape/clips"


@pytest.fixture(scope="module")
def fine_tuned(follow, world, clips):
    follow("run=runs/landscape/kl_vae")
    return world / "runs/landscape/kl_vae"


@pytest.fixture(scope="module")
def autoencoder(follow, world, fine_tuned):
    follow("reconstruct")
    return world / "runs/landscape/autoencoder"


@pytest.fixture(scope="module")
def latents(follow, world, autoencoder):
    follow("data/landscape/latents_test")
    return world / "data/landscape/latents"


@pytest.fixture(scope="module")
def dits(follow, world, latents):
    follow("run=runs/landscape/dit_L")
    return [world / f"runs/landscape/dit_{preset}" for preset in "SBL"]


def assert_trained(run: Path, weights: str = "model.safetensors") -> None:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [record["samples_seen"] for record in records] == [4, 8, 12, 16]
    assert all(np.isfinite(record["loss"]) for record in records)
    state = load_file(run / "checkpoints/step-000000000016/weights" / weights)
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert list((run / "tensorboard").iterdir())


def test_clips_have_the_classes_of_their_names(clips):
    manifest = json.loads((clips / "manifest.json").read_text())
    assert manifest["samples"] == 9
    assert sorted(manifest["classes"]) == ["fire crackling", "raining", "thunder"]


def test_a_kl_vaes_decoder_is_fine_tuned(fine_tuned):
    assert_trained(fine_tuned, "vae/diffusion_pytorch_model.safetensors")


def test_the_autoencoder_is_trained_validated_and_measured(world, autoencoder):
    assert_trained(autoencoder)
    assert "validation/loss" in (autoencoder / "log.jsonl").read_text()
    assert "lpips" in (world / "runs/landscape/reconstruction/reconstruction.json").read_text()


def test_its_latents_are_webdataset_shards(latents):
    shards = sorted(map(str, latents.glob("shard-*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    assert len(samples) == json.loads((latents / "manifest.json").read_text())["samples"] == 9
    assert len({sample["__key__"] for sample in samples}) == 9


def test_the_dits_are_trained_and_validated(dits):
    for run in dits:
        assert_trained(run)
        assert "validation/loss" in (run / "log.jsonl").read_text()


def test_an_array_of_jobs_samples_videos_with_sound(follow, world, dits):
    printed = follow("--num-samples")[-1]
    assert printed.count("of 3 samples are in runs/landscape/samples") == 2
    videos = sorted((world / "runs/landscape/samples").glob("*.mp4"))
    assert [video.name for video in videos] == [f"svg_{index:06d}.mp4" for index in range(3)]
    assert all(probe(video).has_audio for video in videos)
    assert (world / "runs/landscape/samples/index.html").is_file()
