import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import KLVAEConfig
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae

CONFIG = KLVAEConfig(channels=[8, 8, 16], blocks=1, latent_channels=3)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def diffusers_folder(tmp_path: Path) -> Path:
    """A folder laid out as Stable Diffusion's, written by diffusers itself."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    vae.save_pretrained(tmp_path / "stable-diffusion" / "vae")
    return tmp_path / "stable-diffusion"


@pytest.mark.parametrize("part", ["", "vae"])
def test_loads_a_diffusers_folder(diffusers_folder, part):
    vae = kl_vae.load(diffusers_folder / part)
    reference = AutoencoderKL.from_pretrained(diffusers_folder / "vae", low_cpu_mem_usage=False)
    with torch.no_grad():
        expected = reference.encode(pictures()).latent_dist.mean * 0.5
        torch.testing.assert_close(kl_vae.encode(vae, pictures()), expected)
        torch.testing.assert_close(kl_vae.decode(vae, expected), reference.decode(expected / 0.5).sample.clamp(-1, 1))
    assert kl_vae.reduction(vae) == 2


def test_round_trip_in_our_own_kind_of_folder(tmp_path):
    torch.manual_seed(0)
    vae = kl_vae.build(CONFIG, scaling_factor=0.7)
    kl_vae.save(tmp_path, vae)
    loaded = kl_vae.load(tmp_path)
    assert loaded.config.scaling_factor == 0.7
    assert all(torch.equal(tensor, vae.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    AutoencoderKL.from_pretrained(tmp_path / "vae", low_cpu_mem_usage=False)  # as any diffusers program would


def test_latents_are_scaled_and_reduced(tmp_path):
    vae = kl_vae.build(CONFIG, scaling_factor=2.0)
    with torch.no_grad():
        latents = kl_vae.encode(vae, pictures())
        assert latents.shape == (2, 3, 8, 8)
        torch.testing.assert_close(latents, 2 * vae.encode(pictures()).latent_dist.mean)
        assert kl_vae.decode(vae, latents).abs().max() <= 1


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        kl_vae.load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_refusals(diffusers_folder, tmp_path):
    assert "no such file" in refusal(tmp_path / "nowhere")
    (tmp_path / "dit").mkdir()
    (tmp_path / "dit" / "config.json").write_text(json.dumps({"kind": "dit"}))
    assert "'dit'" in refusal(tmp_path / "dit")
    weights = diffusers_folder / "vae" / WEIGHTS
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if name != "quant_conv.bias"}, weights)
    assert "quant_conv.bias" in refusal(diffusers_folder)
    weights.write_bytes(weights.read_bytes()[:1000])
    assert str(diffusers_folder) in refusal(diffusers_folder)
    weights.unlink()
    assert str(diffusers_folder) in refusal(diffusers_folder)


def test_a_single_file_has_an_identity(diffusers_folder):
    file = diffusers_folder / "vae" / WEIGHTS
    assert kl_vae.find(file) == file
    assert kl_vae.load(file).config.scaling_factor == 0.5  # of the config.json beside it
    before = pretrained.fingerprint(file)
    assert len(before) == 64
    config = file.with_name("config.json")
    config.write_text(config.read_text().replace('"scaling_factor": 0.5', '"scaling_factor": 0.6'))
    assert pretrained.fingerprint(kl_vae.find(file)) != before
