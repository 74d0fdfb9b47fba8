"""``mmldm plan`` and ``model-info`` are for the sizes of the shards that are given, and say for which."""

from pathlib import Path

import pytest

from mmldm_scale.cli import main
from mmldm_scale.models.dit import PRESETS
from mmldm_scale.models.flops import dit_macs
from tests.support.datasets.clip_sets import write_clips
from tests.support.datasets.latent_sets import AUDIO, VIDEO, write_latents

PLAN = ["plan", "--gpu", "a800", "--gpus-per-node", "1"]
SHAPES = "audio latents 4 × 2 × 2, video latents 4 × 3 × 3"
TINY = "trainable: dit\nmodel: {depth: 1, width: 64, heads: 1}\n"
PAPER = "clips of 16 frames of 256 × 256 pixels at 10 fps, the defaults; shards=DIR or --run DIR"


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    return write_latents(tmp_path_factory.mktemp("sets") / "latents", (4,))


@pytest.fixture
def printed(capsys):
    def run(*arguments: str) -> str:
        assert main(list(arguments)) == 0
        return capsys.readouterr().out

    return run


def test_model_info_is_for_the_latents_of_the_shards(latents: Path, printed) -> None:
    shown = f"clips of 16 frames of 64 × 64 pixels at 10 fps, {SHAPES}, as in {latents}"
    out = printed("model-info", "--preset", "S", f"shards={latents}")
    assert f"  sizes        {shown}\n" in out
    assert f"  forward      {dit_macs(PRESETS['S'], AUDIO, VIDEO).flops / 1e9:.1f} GFLOPs of a sample" in out
    assert PAPER in printed("model-info", "--preset", "S")


def test_model_info_of_a_run_is_for_its_shards(latents: Path, printed, tmp_path: Path, capsys) -> None:
    (tmp_path / "config.yaml").write_text(f"{TINY}shards: [{latents}]\n")
    out = printed("model-info", "--run", str(tmp_path))
    assert f"as in {latents}\n" in out
    assert main(["model-info", "--run", str(tmp_path), "shards=nowhere"]) == 2  # an override wins
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert main(["model-info", "--run", str(tmp_path / "none")]) == 2
    assert "config.yaml: no such configuration file" in capsys.readouterr().err


@pytest.mark.parametrize(("trainable", "full"), [("kl_vae", 894.9), ("autoencoder", 3_909.4)])
def test_clips_of_another_size_take_less(trainable: str, full: float, tmp_path: Path, printed) -> None:
    """``full``: GFLOPs forward of a sample of the paper's size, as `mmldm model-info --trainable …` prints them."""
    clips = write_clips(tmp_path / "clips", 2)
    out = printed("model-info", "--trainable", trainable, "training.micro_batch=1", f"shards={clips}")
    assert f"as in {clips}\n" in out
    assert float(out.partition("forward")[2].split()[0].replace(",", "")) < full / 4


def test_a_plan_is_for_the_latents_of_the_shards(latents: Path, printed, tmp_path: Path, capsys) -> None:
    small = ["model.depth=1", "model.width=64", "model.heads=1", "--global-batch", "2"]
    far = printed(*PLAN, "--model", "S", *small)
    near = printed(*PLAN, "--model", "S", *small, f"shards={latents}")
    assert f"sizes: {PAPER}" in far
    assert near.endswith(f"video latents 4 × 3 × 3, as in {latents}\n")
    assert far.splitlines()[2] != near.splitlines()[2]
    (tmp_path / "config.yaml").write_text(f"{TINY}shards: [{latents}]\n")
    run = printed(*PLAN, "--run", str(tmp_path), "--global-batch", "2")
    assert run.startswith(f"{tmp_path} (dit) on 1 × 1 ")
    assert run.splitlines()[1:] != far.splitlines()[1:]
    assert main([*PLAN]) == main([*PLAN, "--model", "S", "--run", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "mmldm: give either --model NAME or --run DIR\n" * 2
