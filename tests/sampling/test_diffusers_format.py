"""A folder in diffusers' layout: loaded with diffusers' own classes, each part is what it was."""

import dataclasses
import json
from pathlib import Path

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


def parts(folder: Path) -> dict:
    """Load all that the index names as diffusers' own."""
    index = json.loads((folder / "model_index.json").read_text())
    named = {name: value[1] for name, value in index.items() if value[0] == "diffusers"}
    return {name: getattr(diffusers, kind).from_pretrained(folder, subfolder=name) for name, kind in named.items()}


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    found, wanted = one.state_dict(), other.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def assert_same_schedule(one: diffusers.DDIMScheduler, other: diffusers.DDIMScheduler) -> None:
    assert torch.equal(one.alphas_cumprod, other.alphas_cumprod)
    for key in ("timestep_spacing", "prediction_type", "clip_sample", "set_alpha_to_one"):
        assert one.config[key] == other.config[key]


@pytest.mark.parametrize("shared", [True, False])
def test_autoencoder(tmp_path, shared: bool) -> None:
    model = tiny_autoencoder.opened(tiny_autoencoder.build(shared_decoder=shared))
    model.save_pretrained(diffusers_format.place(tmp_path, "autoencoder"))
    diffusers_format.write(tmp_path, "autoencoder")
    found, unets = parts(tmp_path), model.decoder.unets
    assert found.keys() == {"vae", "scheduler", *(["unet"] if shared else ["unet_audio", "unet_video"])}
    assert_same(found["vae"], model.kl_vae)
    for name, unet in unets.items():
        assert_same(found["unet" if shared else f"unet_{name}"], unet)
    assert_same_schedule(found["scheduler"], model.decoder.schedule)
    assert_same(Autoencoder.from_pretrained(tmp_path / "autoencoder"), model)


def test_kl_vae(tmp_path) -> None:
    vae = kl_vae.build(tiny_autoencoder.KL_VAE, scaling_factor=3.0)
    kl_vae.save(diffusers_format.place(tmp_path, "kl_vae"), vae)
    diffusers_format.write(tmp_path, "kl_vae")
    found = parts(tmp_path)
    assert found.keys() == {"vae"}
    assert_same(found["vae"], vae)
    assert found["vae"].config.scaling_factor == 3.0


def test_dit(tmp_path) -> None:
    diffusion = DiffusionConfig(steps=500, beta_end=0.02)
    whole, described = diffusers_format.place(tmp_path, "dit"), {"diffusion": dataclasses.asdict(diffusion)}
    pretrained.save(whole, "dit", described, {"weight": torch.ones(2)})
    diffusers_format.write(tmp_path, "dit")
    found = parts(tmp_path)
    assert found.keys() == {"scheduler"}
    assert_same_schedule(found["scheduler"], scheduler(diffusion))


def test_dit_that_predicts_otherwise(tmp_path) -> None:
    found = {}
    for settings in ({"prediction": "v", "zero_terminal_snr": True}, {"prediction": "flow", "steps": 500}):
        folder, described = tmp_path / settings["prediction"], dataclasses.asdict(DiffusionConfig(**settings))
        whole = diffusers_format.place(folder, "dit")
        pretrained.save(whole, "dit", {"diffusion": described}, {"weight": torch.ones(2)})
        diffusers_format.write(folder, "dit")
        found[settings["prediction"]] = parts(folder)["scheduler"]
    assert_same_schedule(found["v"], scheduler(DiffusionConfig(prediction="v", zero_terminal_snr=True)))
    assert found["v"].alphas_cumprod[-1] == 0
    assert isinstance(found["flow"], diffusers.FlowMatchEulerDiscreteScheduler)
    assert found["flow"].config.num_train_timesteps == 500
