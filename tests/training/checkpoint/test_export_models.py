"""``mmldm export`` of the real models, trained for one step: the exported folders load."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from mmldm_scale.cli import main
from mmldm_scale.config import AdversarialConfig, TrainingConfig, load
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.dit import DiT
from mmldm_scale.trainables.autoencoder import trainable as autoencoder_trainable
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.dit import trainable as dit_trainable
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.kl_vae import trainable as kl_vae_task
from mmldm_scale.trainables.kl_vae.config import KLVAETraining
from mmldm_scale.training.loop import Trainer
from mmldm_scale.training.resilience.signals import StopRequest
from mmldm_scale.training.trainable import Trainable
from tests.support.datasets.latent_sets import AUDIO, VIDEO, write_latents
from tests.support.tiny_models import autoencoder_trainable as tiny_trainable
from tests.support.tiny_models import tiny_autoencoder
from tests.trainables.dit.test_trainable import SMALL

TRAINING = TrainingConfig(
    **dict.fromkeys(("total_samples", "global_batch", "micro_batch", "log_every", "checkpoint_every"), 4),
    preview_every=8,
    precision="fp32",
    workers=0,
    learning_rate=1e-2,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_trainable.write_data(tmp_path_factory.mktemp("export"))


@pytest.fixture
def trained(tmp_path: Path, alone, restored_handlers) -> Callable[[Trainable], dict[str, torch.Tensor]]:
    """Train a trainable for one step into ``tmp_path / "run"``; return the weights that it has then."""

    def train(trainable: Trainable) -> dict[str, torch.Tensor]:
        trainable.preview = None
        (tmp_path / "run").mkdir()
        trainer = Trainer(trainable, TRAINING, tmp_path / "run", alone)
        trainer.run(StopRequest())
        return {name: p.detach().clone() for name, p in trainer.engine.module.named_parameters() if p.requires_grad}

    return train


def export(tmp_path: Path, *options: str) -> Path:
    folder = tmp_path / "_".join(("out", *options)).replace("--", "")
    assert main(["export", "--checkpoint", str(tmp_path / "run"), "--output", str(folder), *options]) == 0
    return folder


def assert_holds(found: torch.nn.Module, weights: dict[str, torch.Tensor], prefix: str) -> None:
    state = found.state_dict()
    assert weights
    for name, value in weights.items():
        assert torch.equal(state[name.removeprefix(prefix)], value), name


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    found, wanted = one.state_dict(), other.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_autoencoder(data, tmp_path, trained) -> None:
    settings = {"kl_vae": str(data / "kl_vae"), "adversarial": AdversarialConfig(weight=0.0), "training": TRAINING}
    config = AutoencoderTraining(shards=[str(data / "clips")], model=tiny_autoencoder.CONFIG, **settings)
    weights = trained(autoencoder_trainable.build_trainable(config))
    raw = Autoencoder.from_pretrained(export(tmp_path, "--weights", "raw"))
    assert_holds(raw, weights, "autoencoder.")
    assert_same(raw.kl_vae, kl_vae.load(data / "kl_vae"))
    folder = export(tmp_path, "--weights", "raw", "--format", "diffusers")
    assert len({file.stat().st_mode for file in folder.rglob("*.*")}) == 1
    assert_same(Autoencoder.from_pretrained(folder / "autoencoder"), raw)
    assert_same(AutoencoderKL.from_pretrained(folder, subfolder="vae"), raw.kl_vae)
    assert_same(UNet2DConditionModel.from_pretrained(folder, subfolder="unet"), raw.decoder.unets["shared"])


def test_kl_vae(data, tmp_path, trained) -> None:
    config = KLVAETraining(shards=[str(data / "clips")], model=tiny_autoencoder.KL_VAE, training=TRAINING)
    weights = trained(kl_vae_task.build_trainable(config))
    for options in (["--weights", "raw"], ["--weights", "raw", "--format", "diffusers"]):
        folder = export(tmp_path, *options)
        assert_holds(kl_vae.load(folder), weights, "vae.")
        assert_same(AutoencoderKL.from_pretrained(folder, subfolder="vae"), kl_vae.load(folder))
    averaged = kl_vae.load(tmp_path / "run")
    assert_same(kl_vae.load(export(tmp_path)), averaged)


def test_dit(tmp_path, trained, capsys) -> None:
    shards = write_latents(tmp_path / "latents")
    config = load(DiTTraining, overrides=[f"shards={shards}", "training.precision=fp32", *SMALL])
    config.training = TRAINING
    weights = trained(dit_trainable.build_trainable(config))
    found = DiT(config.model, AUDIO, VIDEO)
    pretrained.load_into(found, export(tmp_path, "--weights", "raw"))
    assert_holds(found, weights, "dit.")
    command = ["export", "--checkpoint", str(tmp_path / "run"), "--format", "diffusers"]
    assert main([*command, "--output", str(tmp_path / "pipeline")]) == 2  # the latents are of no autoencoder
    assert "--autoencoder DIR names its new place" in capsys.readouterr().err
    assert not (tmp_path / "pipeline").exists()
