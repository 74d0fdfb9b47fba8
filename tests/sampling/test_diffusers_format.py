"""A folder in diffusers' layout: each part, loaded with diffusers' own class, equals the model's."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from mmldm_scale.config import DiffusionConfig
from mmldm_scale.diffusion.schedule import scheduler
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.sampling.diffusers_format import DiffusersFormat
from tests.support.tiny_models import tiny_autoencoder

LAYOUT = DiffusersFormat()


def parts(folder: Path) -> dict[str, Any]:
    """Load every part with the class of diffusers that its configuration names, by the name of its sub-folder."""
    loaded = {}
    for path in [*folder.glob("*/config.json"), *folder.glob("*/scheduler_config.json")]:
        description = json.loads(path.read_text())
        if "_class_name" in description:  # the weights folder of the whole model names a kind
            library_class = getattr(diffusers, description["_class_name"])
            loaded[path.parent.name] = library_class.from_pretrained(folder, subfolder=path.parent.name)
    return loaded


def assert_same(module: torch.nn.Module, expected: torch.nn.Module) -> None:
    state, expected_state = module.state_dict(), expected.state_dict()
    assert state.keys() == expected_state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected_state.items())


def assert_same_schedule(schedule: diffusers.DDIMScheduler, expected: diffusers.DDIMScheduler) -> None:
    assert torch.equal(schedule.alphas_cumprod, expected.alphas_cumprod)
    for key in ("timestep_spacing", "prediction_type", "clip_sample", "set_alpha_to_one"):
        assert schedule.config[key] == expected.config[key]


@pytest.mark.parametrize("shared", [True, False])
def test_autoencoder(tmp_path, shared: bool) -> None:
    model = tiny_autoencoder.opened(tiny_autoencoder.build(shared_decoder=shared))
    model.save_pretrained(LAYOUT.place(tmp_path, "autoencoder"))
    LAYOUT.write(tmp_path, "autoencoder", tmp_path)
    loaded, unets = parts(tmp_path), model.decoder.unets
    assert loaded.keys() == {"vae", "scheduler", *(["unet"] if shared else ["unet_audio", "unet_video"])}
    assert_same(loaded["vae"], model.kl_vae)
    for name, unet in unets.items():
        assert_same(loaded["unet" if shared else f"unet_{name}"], unet)
    assert_same_schedule(loaded["scheduler"], scheduler(DiffusionConfig()))
    assert_same(Autoencoder.from_pretrained(tmp_path / "autoencoder"), model)
    assert not (tmp_path / "model_index.json").exists()  # it would name a pipeline class that does not exist


def test_kl_vae(tmp_path) -> None:
    vae = kl_vae.build(tiny_autoencoder.KL_VAE, scaling_factor=3.0)
    kl_vae.save(LAYOUT.place(tmp_path, "kl_vae"), vae)
    LAYOUT.write(tmp_path, "kl_vae", tmp_path)
    loaded = parts(tmp_path)
    assert loaded.keys() == {"vae"}
    assert_same(loaded["vae"], vae)
    assert loaded["vae"].config.scaling_factor == 3.0


@pytest.mark.parametrize(
    "settings",
    [{"steps": 500, "beta_end": 0.02}, {"prediction": "v", "zero_terminal_snr": True}, {"prediction": "flow"}],
)
def test_dit(model, tmp_path, settings: dict[str, Any]) -> None:
    diffusion = DiffusionConfig(**settings)
    shutil.copytree(model.dit, LAYOUT.place(tmp_path, "dit"), ignore=shutil.ignore_patterns(pretrained.SUMS))
    file = tmp_path / "dit" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"diffusion": dataclasses.asdict(diffusion)}))
    LAYOUT.write(tmp_path, "dit", model.dit)
    loaded = parts(tmp_path)
    assert loaded.keys() == {"scheduler", "vae", "unet"}
    assert_same(loaded["unet"], Autoencoder.from_pretrained(model.autoencoder).decoder.unets["shared"])
    if diffusion.prediction == "flow":
        assert isinstance(loaded["scheduler"], diffusers.FlowMatchEulerDiscreteScheduler)
    else:
        assert_same_schedule(loaded["scheduler"], scheduler(diffusion))


def test_a_kind_without_parts_of_diffusers_is_its_weights_folder_alone(tmp_path) -> None:
    pretrained.save(LAYOUT.place(tmp_path, "toy"), "toy", {}, {"weight": torch.ones(2)})
    LAYOUT.write(tmp_path, "toy", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
