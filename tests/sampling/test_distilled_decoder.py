"""Sampling with a distilled signal decoder: it decodes the latents of the autoencoder that taught it."""

import dataclasses
from pathlib import Path

import pytest

from mmldm_scale.cli import main
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DecodingConfig, Sampling
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder.distillation import Distillation
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.sampling.description import DiTDescription, find_autoencoder
from mmldm_scale.sampling.pipeline import Pipeline
from tests.support.tiny_models.weights_folders import TinyModel


@pytest.fixture(scope="module")
def distilled(model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Autoencoders distilled from the one of the DiT's latents, and from another one."""
    folder = tmp_path_factory.mktemp("distilled")
    for name in ("autoencoder", "other_autoencoder"):
        teacher: Path = getattr(model, name)
        student = Autoencoder.from_pretrained(teacher)
        student.distillation = Distillation((1, 2), pretrained.fingerprint(teacher))
        student.save_pretrained(folder / name)
    return {name: folder / name for name in ("autoencoder", "other_autoencoder")}


def test_it_is_accepted_in_place_of_its_teacher_alone(model: TinyModel, distilled: dict[str, Path]) -> None:
    description = DiTDescription.read(model.dit)
    assert find_autoencoder(description, distilled["autoencoder"]) == distilled["autoencoder"]
    assert find_autoencoder(description, distilled["autoencoder"], DecodingConfig(steps=2))
    with pytest.raises(UserError, match="distilled for 1 or 2 steps"):
        find_autoencoder(description, distilled["autoencoder"], DecodingConfig(steps=4))
    with pytest.raises(UserError, match="is not the autoencoder that made the DiT's latents"):
        find_autoencoder(description, distilled["other_autoencoder"])
    own = {"path": str(distilled["autoencoder"]), "fingerprint": pretrained.fingerprint(distilled["autoencoder"])}
    assert find_autoencoder(dataclasses.replace(description, autoencoder=own)) == distilled["autoencoder"]
    settings = Sampling(steps=1, decoding=DecodingConfig("auto", 1))
    (clip,) = Pipeline.from_pretrained(model.dit, settings, distilled["autoencoder"]).generate("svg", [0])
    assert clip.frames.any()


def test_a_folder_holds_the_samples_of_one_decoder(
    model: TinyModel, distilled: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sample", "--checkpoint", str(model.dit), "--task", "svg", "--num-samples", "1", "steps=1"]
    few = [*arguments, "--output", str(tmp_path), "decoding.steps=2"]
    by_student = [*few, "--autoencoder", str(distilled["autoencoder"])]
    assert main([*by_student, "decoding.steps=50", "--check"]) != 0
    assert "decoding.steps: 50: this signal decoder was distilled for 1 or 2 steps" in capsys.readouterr().err
    assert main(by_student) == 0
    assert (
        f'"signal_decoder": "{pretrained.fingerprint(distilled["autoencoder"])}"'
        in (tmp_path / "svg_000000.json").read_text()
    )
    assert main(few) != 0
    assert "made with another signal_decoder" in capsys.readouterr().err
