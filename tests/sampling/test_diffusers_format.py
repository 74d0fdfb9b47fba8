"""A folder in diffusers' layout: each part, loaded with diffusers' own class, equals the model's."""

import dataclasses
import json
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
from mmldm_scale.sampling import diffusers_format
from tests.support.tiny_models import tiny_autoencoder


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
    model.save_pretrained(diffusers_format.place(tmp_path, "autoencoder"))
    diffusers_format.write(tmp_path, "autoencoder")
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
    kl_vae.save(diffusers_format.place(tmp_path, "kl_vae"), vae)
    diffusers_format.write(tmp_path, "kl_vae")
    loaded = parts(tmp_path)
    assert loaded.keys() == {"vae"}
    assert_same(loaded["vae"], vae)
    assert loaded["vae"].config.scaling_factor == 3.0


def test_dit(tmp_path) -> None:
    diffusion = DiffusionConfig(steps=500, beta_end=0.02)
    weights, values = diffusers_format.place(tmp_path, "dit"), {"diffusion": dataclasses.asdict(diffusion)}
    pretrained.save(weights, "dit", values, {"weight": torch.ones(2)})
    diffusers_format.write(tmp_path, "dit")
    loaded = parts(tmp_path)
    assert loaded.keys() == {"scheduler"}
    assert_same_schedule(loaded["scheduler"], scheduler(diffusion))


def test_dit_of_other_predictions(tmp_path) -> None:
    schedulers = {}
    for settings in ({"prediction": "v", "zero_terminal_snr": True}, {"prediction": "flow", "steps": 500}):
        folder, values = tmp_path / settings["prediction"], dataclasses.asdict(DiffusionConfig(**settings))
        weights = diffusers_format.place(folder, "dit")
        pretrained.save(weights, "dit", {"diffusion": values}, {"weight": torch.ones(2)})
        diffusers_format.write(folder, "dit")
        schedulers[settings["prediction"]] = parts(folder)["scheduler"]
    assert_same_schedule(schedulers["v"], scheduler(DiffusionConfig(prediction="v", zero_terminal_snr=True)))
    assert schedulers["v"].alphas_cumprod[-1] == 0
    assert isinstance(schedulers["flow"], diffusers.FlowMatchEulerDiscreteScheduler)
    assert schedulers["flow"].config.num_train_timesteps == 500


def test_a_kind_without_parts_of_diffusers_is_its_weights_folder_alone(tmp_path) -> None:
    pretrained.save(diffusers_format.place(tmp_path, "toy"), "toy", {}, {"weight": torch.ones(2)})
    diffusers_format.write(tmp_path, "toy")
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
