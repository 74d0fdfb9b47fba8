"""``mmldm doctor --weights``: the layout of the pretrained weights, and what is wrong with it."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from mmldm_scale.cli import main
from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.doctor import weights
from tests.support.recipes import ROOT
from tests.support.tiny_models import tiny_autoencoder
from tests.support.tiny_models.backbones import random_features

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/recipes").glob("*.md"))]
NETWORKS = yaml.safe_load((ROOT / "mmldm_scale/config/presets/evaluate/weights.yaml").read_text())["weights"]
PLACES = {"sd15", "vgg16.pth", "hifigan", *(Path(place).name for place in NETWORKS.values())}  # of mmldm evaluate, too
OTHERS = r"t5-large|dit_\w+|autoencoder|config\.json|model\.safetensors"  # what pages keep in such a folder besides


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch, capsys):
    """Run it in a folder of its own; return its status and its lines by the place that they name."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, dict[str, str]]:
        status = main(["doctor", "--weights", *arguments])
        lines = capsys.readouterr().out.splitlines()
        return status, {re.search(r"\bweights/[\w/.]+", line)[0].rstrip(":"): line for line in lines}

    return run


def test_what_is_missing_is_listed_with_its_use_and_its_download(doctor) -> None:
    status, lines = doctor()
    assert status == 1
    assert [*lines] == ["weights/sd15/vae", "weights/sd15/unet", "weights/vgg16.pth", "weights/hifigan"]
    assert [line.split()[0] for line in lines.values()] == ["error", "error", "error", "warning"]
    assert "for unet= of autoencoder trainings; without it the signal decoder" in lines["weights/sd15/unet"]
    assert lines["weights/vgg16.pth"].endswith(
        "; curl -fL --create-dirs -o weights/vgg16.pth https://download.pytorch.org/models/vgg16-397923af.pth"
    )


def test_weights_that_are_there_are_read_and_their_sha256_is_compared(doctor, tmp_path: Path, monkeypatch) -> None:
    tiny_autoencoder.build().kl_vae.save_pretrained(tmp_path / "weights/sd15/vae")
    torch.save(random_features("vgg16"), tmp_path / "weights/vgg16.pth")
    digest = sha256(tmp_path / "weights/vgg16.pth")
    parts = [dataclasses.replace(part, sha256=digest) if part.place == "vgg16.pth" else part for part in weights.PARTS]
    monkeypatch.setattr(weights, "PARTS", parts)
    status, lines = doctor("weights")
    assert status == 1  # the U-Net is missing
    assert f"sha256 {digest}: torchvision's VGG16, as published; for lpips=" in lines["weights/vgg16.pth"]
    of_vae = lines["weights/sd15/vae/diffusion_pytorch_model.safetensors"]
    assert of_vae.startswith("warning  weights ")
    assert (
        "can be loaded, but is not Stable Diffusion 1.5's KL-VAE as published (334,643,276 bytes, sha256 a2b5134"
        in of_vae
    )


def test_weights_that_the_jobs_cannot_read_are_errors(doctor, tmp_path: Path) -> None:
    tiny = tiny_autoencoder.build()
    tiny.decoder.unets["shared"].save_pretrained(tmp_path / "weights/sd15/unet")  # of another shape
    tiny.kl_vae.save_pretrained(tmp_path / "weights/sd15/vae")
    (tmp_path / "weights/sd15/vae/diffusion_pytorch_model.safetensors").write_bytes(
        b"version https://git-lfs.github.com"
    )
    (tmp_path / "weights/vgg16.pth").write_bytes(b"cut short")
    (tmp_path / "weights/hifigan").mkdir()
    (tmp_path / "weights/hifigan/config.json").write_text(json.dumps({"resblock": "2"}))
    status, lines = doctor()
    assert status == 1
    assert [line.split()[0] for line in lines.values()] == ["error"] * 4
    text = "\n".join(lines.values())
    for complaint in (
        "is a Git LFS pointer",
        "is another U-Net than",
        "weights/vgg16.pth: cannot be read as weights",
        "as in HiFi-GAN's V3",
    ):
        assert complaint in text
    assert text.count("; download it again: ") == 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_have_the_commands_of_the_doctor(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    commands = [
        set(shlex.split(line, comments=True)) for line in text.splitlines() if line.startswith(("hf ", "curl "))
    ]
    for part in weights.PARTS:
        if part.optional and page.name == "audioset.md":  # it does not fit that set's clips
            continue
        for command in part.commands:
            words = set(shlex.split(command.format(folder="weights")))
            assert any(words <= known for known in commands), command


def test_the_layout_is_spelled_the_same_everywhere() -> None:
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "slurm").glob("*.sh")]
    files += (ROOT / "mmldm_scale/config/presets").rglob("*.yaml")
    for file in files:
        places = re.findall(r"(?<![\w/])weights/([\w.=-]*\w)", file.read_text())
        assert {place for place in places if not re.fullmatch(OTHERS, place)} <= PLACES, file
