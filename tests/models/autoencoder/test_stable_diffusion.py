"""Published weights, made here at Stable Diffusion's depth and a narrow width, come back exactly from every format."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.models.autoencoder.stable_diffusion import load_kl_vae, load_unet
from tests.support.tiny_models import ldm

WHOLE = {"cond_stage_model.logit_scale": torch.ones(1), "model_ema.num_updates": torch.ones((), dtype=torch.int64)}
KL_VAE_PREFIX, UNET_PREFIX = "first_stage_model.", "model.diffusion_model."
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=2,
        scaling_factor=0.5,
    ).eval()


def make_unet(**settings) -> UNet2DConditionModel:
    torch.manual_seed(1)
    geometry = {
        "block_out_channels": (8, 16, 32, 32),
        "attention_head_dim": 4,
        "cross_attention_dim": 12,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**geometry | settings).eval()


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return make_unet()


@pytest.fixture
def ours() -> UNet2DConditionModel:
    """A U-Net with a class embedding, which adds nothing yet."""
    model = make_unet(sample_size=16, class_embed_type="projection", projection_class_embeddings_input_dim=5)
    torch.nn.init.zeros_(model.class_embedding.linear_2.weight)
    torch.nn.init.zeros_(model.class_embedding.linear_2.bias)
    for name, parameter in model.named_parameters():
        if not name.startswith("class_embedding"):
            torch.nn.init.normal_(parameter)
    return model


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def write(path: Path, state: State, **around: object) -> Path:
    """Write ``state`` as safetensors, or as a checkpoint of torch with ``around`` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save({"state_dict": state, **around} if around else state, path)
    return path


def old_names(state: State) -> State:
    """Return the weights of a KL-VAE as diffusers named them in 2022."""
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for word, old in new.items():
        state = {name.replace(f".{word}.", f".{old}."): tensor for name, tensor in state.items()}
    return state


def describe(folder: Path, model: torch.nn.Module) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_config(folder)


def whole_file(suffix: str) -> Callable:
    return lambda at, prefix, state, _: write(at / f"sd{suffix}", prefixed(prefix, state) | WHOLE)


def lightning_file(at: Path, prefix: str, published: State, _: State) -> Path:
    return write(at / "sd.ckpt", prefixed(prefix, published) | WHOLE, epoch=3, hyper_parameters={"lr": 1e-4})


def part_alone(at: Path, prefix: str, published: State, _: State) -> Path:
    return write(at / "part.safetensors", published)


def file_of_diffusers(at: Path, prefix: str, _: State, state: State) -> Path:
    return write(at / "mine.safetensors", state)


SINGLE_FILES = {
    "whole safetensors": whole_file(".safetensors"),
    "whole ckpt": whole_file(".ckpt"),
    "lightning": lightning_file,
    "part alone": part_alone,
    "diffusers' names": file_of_diffusers,
}
single_files = pytest.mark.parametrize("layout", SINGLE_FILES.values(), ids=SINGLE_FILES.keys())


def folder_of(model: torch.nn.Module, folder: Path, form: str) -> None:
    """Write ``model`` as a diffusers folder in one of the forms in which they are found."""
    if form in ("safetensors", "sharded"):
        model.save_pretrained(folder, max_shard_size="30KB" if form == "sharded" else "1GB")
        assert (len(list(folder.glob("*.safetensors"))) > 1) == (form == "sharded")
        return
    describe(folder, model)
    state = model.state_dict()
    if form == "old names":
        write(folder / "diffusion_pytorch_model.safetensors", old_names(state))
    elif form == "fp16":
        write(folder / "diffusion_pytorch_model.fp16.safetensors", {name: state[name].half() for name in state})
    else:
        write(folder / "diffusion_pytorch_model.bin", state)


folders = pytest.mark.parametrize("form", ["safetensors", "sharded", "old names", "fp16", "bin"])


def assert_same(loaded: torch.nn.Module, original: torch.nn.Module, tolerance: float = 0.0) -> None:
    state = loaded.state_dict()
    for name, tensor in original.state_dict().items():
        assert state[name].dtype == torch.float32
        torch.testing.assert_close(state[name], tensor, rtol=tolerance, atol=tolerance)


@single_files
def test_a_vae_in_a_single_file(vae, tmp_path, layout):
    describe(tmp_path, vae)  # it is narrower than Stable Diffusion's
    published = ldm.vae_weights(vae.state_dict(), 4)
    assert ldm.digest(published) == ldm.PUBLISHED_VAE
    loaded = load_kl_vae(layout(tmp_path, KL_VAE_PREFIX, published, vae.state_dict()))
    assert not loaded.training
    assert loaded.config.scaling_factor == 0.5
    assert_same(loaded, vae)
    picture = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latent = vae.encode(picture).latent_dist.mean
        assert loaded.encode(picture).latent_dist.mean.equal(latent)
        assert loaded.decode(latent).sample.equal(vae.decode(latent).sample)


@folders
@pytest.mark.parametrize("part", ["", "vae"])
def test_a_vae_in_a_diffusers_folder(vae, tmp_path, form, part):
    folder_of(vae, tmp_path / part, form)
    assert_same(load_kl_vae(tmp_path), vae, tolerance=1e-3 if form == "fp16" else 0.0)


def test_a_vae_without_a_configuration_has_stable_diffusions(tmp_path):
    with torch.device("meta"):
        names = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        ).state_dict()
    state = {name: torch.full(tensor.shape, 0.5, dtype=torch.float16) for name, tensor in names.items()}
    published = ldm.vae_weights(state, 4) | {"loss.logvar": torch.zeros(1)}
    loaded = load_kl_vae(write(tmp_path / "vae-ft-mse-840000-ema-pruned.safetensors", published))
    assert loaded.config.scaling_factor == 0.18215
    assert sum(p.numel() for p in loaded.parameters()) == 83_653_863
    assert all(bool((p == 0.5).all()) and p.dtype == torch.float32 for p in loaded.parameters())


@single_files
def test_a_unet_in_a_single_file(unet, ours, tmp_path, layout):
    published = ldm.unet_weights(unet.state_dict(), 2)
    assert ldm.digest(published) == ldm.PUBLISHED_UNET
    before = {name: tensor.clone() for name, tensor in ours.class_embedding.state_dict().items()}
    load_unet(ours, layout(tmp_path, UNET_PREFIX, published, unet.state_dict()))
    assert_same(ours, unet)
    assert all(tensor.equal(before[name]) for name, tensor in ours.class_embedding.state_dict().items())
    random = torch.Generator().manual_seed(0)
    noisy, tokens, content = (torch.randn(shape, generator=random) for shape in ((1, 4, 16, 16), (1, 3, 12), (1, 5)))
    with torch.no_grad():
        expected = unet(noisy, 7, tokens).sample
        assert ours(noisy, 7, tokens, class_labels=content).sample.equal(expected)


@pytest.mark.parametrize("form", ["safetensors", "sharded", "fp16", "bin"])
@pytest.mark.parametrize("part", ["", "unet"])
def test_a_unet_in_a_diffusers_folder(unet, ours, tmp_path, form, part):
    folder_of(unet, tmp_path / part, form)
    load_unet(ours, tmp_path)
    assert_same(ours, unet, tolerance=1e-3 if form == "fp16" else 0.0)


def test_a_smaller_unet_of_ours(tmp_path):
    """Levels, blocks and attention other than Stable Diffusion's are found as well."""
    shape = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
    }
    published = make_unet(**shape)
    model = make_unet(**shape, class_embed_type="projection", projection_class_embeddings_input_dim=5)
    torch.nn.init.normal_(model.conv_in.weight)
    load_unet(model, write(tmp_path / "unet.safetensors", ldm.unet_weights(published.state_dict(), 1)))
    assert_same(model, published)


def refusal(load: Callable, *arguments: object) -> str:
    with pytest.raises(UserError) as error:
        load(*arguments)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    return str(error.value)


def test_a_vae_that_does_not_fit_is_refused(vae, tmp_path):
    published = ldm.vae_weights(vae.state_dict(), 4)
    file = tmp_path / "vae.safetensors"
    assert "242 of another shape (decoder.conv_in.bias (16,) for (512,)," in refusal(
        load_kl_vae, write(file, published)
    )
    describe(tmp_path, vae)
    lacking = {name: tensor for name, tensor in published.items() if name != "decoder.up.2.upsample.conv.bias"}
    assert "decoder.up.2.upsample.conv.bias" in refusal(load_kl_vae, write(file, lacking))
    lacking = {name: tensor for name, tensor in published.items() if "attn_1.q" not in name}
    assert "4 missing (decoder.mid_block.attentions.0.to_q.bias" in refusal(load_kl_vae, write(file, lacking))
    text = refusal(load_kl_vae, write(file, published | {"encoder.mid.attn_2.q.bias": torch.ones(3)}))
    assert "1 left over (encoder.mid.attn_2.to_q.bias)" in text
    whole = published | {"quant_conv.bias": torch.zeros(8, dtype=torch.int8)}
    assert "1 not floating-point (quant_conv.bias)" in refusal(load_kl_vae, write(file, whole))
    assert "missing" in refusal(load_kl_vae, write(file, {"unrelated": torch.ones(1)}))
    assert "247 missing" in refusal(load_kl_vae, write(file, {"encoder.down.0.block.0.norm1.bias": torch.ones(4)}))


def test_sdxl_is_refused_unless_it_says_how_it_scales(vae, tmp_path):
    published = prefixed(KL_VAE_PREFIX, ldm.vae_weights(vae.state_dict(), 4))
    file = write(tmp_path / "xl.safetensors", published | {"conditioner.embedders.0.bias": torch.ones(1)})
    assert "SDXL" in refusal(load_kl_vae, file)
    describe(tmp_path, vae)
    assert_same(load_kl_vae(file), vae)


def test_a_unet_that_does_not_fit_is_refused(unet, ours, tmp_path):
    published = ldm.unet_weights(unet.state_dict(), 2)
    file = tmp_path / "unet.safetensors"
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    lacking = {name: tensor for name, tensor in published.items() if not name.startswith("output_blocks.11.")}
    assert "missing (up_blocks.3.attentions.2.norm.bias" in refusal(load_unet, ours, write(file, lacking))
    extra = published | {"label_emb.0.0.weight": torch.ones(3)}
    assert "1 left over (label_emb.0.0.weight)" in refusal(load_unet, ours, write(file, extra))
    wider = published | {"input_blocks.0.0.weight": torch.ones(8, 9, 3, 3)}  # as of the inpainting model
    assert "1 of another shape (conv_in.weight (8, 9, 3, 3) for (8, 4, 3, 3))" in refusal(
        load_unet, ours, write(file, wider)
    )
    vae_only = write(file, {"first_stage_model.quant_conv.bias": torch.ones(3)})
    text = refusal(load_unet, ours, vae_only)
    assert "686 missing" in text
    assert "1 left over" in text
    assert all(tensor.equal(before[name]) for name, tensor in ours.state_dict().items())


def test_a_unet_with_other_settings_is_refused(unet, ours, tmp_path):
    folder_of(unet, tmp_path / "unet", "safetensors")
    config = tmp_path / "unet" / "config.json"
    changed = json.loads(config.read_text()) | {"attention_head_dim": 8, "flip_sin_to_cos": False}
    config.write_text(json.dumps(changed))
    text = refusal(load_unet, ours, tmp_path)
    assert "attention_head_dim is 8, not 4" in text
    assert "flip_sin_to_cos is False, not True" in text


class Code:
    def __reduce__(self) -> tuple:
        return open, ("/nowhere/at/all", "w")  # would raise FileNotFoundError if it ran


@pytest.mark.parametrize("load", [load_kl_vae, lambda path: load_unet(make_unet(), path)], ids=["vae", "unet"])
def test_what_is_no_weights_file_is_refused(load, vae, tmp_path):
    assert "no such file" in refusal(load, tmp_path / "nowhere.ckpt")
    assert "is no diffusers folder" in refusal(load, tmp_path)
    torch.save({"state_dict": {"quant_conv.bias": Code()}}, tmp_path / "code.ckpt")
    assert "io.open" in refusal(load, tmp_path / "code.ckpt")
    file = write(tmp_path / "vae.safetensors", vae.state_dict())
    file.write_bytes(file.read_bytes()[:-100])
    assert "vae.safetensors" in refusal(load, file)
    (tmp_path / "page.ckpt").write_text("<html>404</html>")
    assert "page.ckpt" in refusal(load, tmp_path / "page.ckpt")


@pytest.mark.parametrize(
    ("key", "value"),
    [("block_out_channels", "wide"), ("norm_num_groups", 0), ("down_block_types", ["NoBlock"] * 4), ("act_fn", 3)],
)
def test_a_wrong_configuration_is_refused(vae, tmp_path, key, value):
    folder_of(vae, tmp_path, "safetensors")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: value}))
    assert "config.json" in refusal(load_kl_vae, tmp_path)


def test_shards_outside_their_folder_are_refused(vae, tmp_path):
    describe(tmp_path / "vae", vae)
    write(tmp_path / "other.safetensors", vae.state_dict())
    index = tmp_path / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"quant_conv.bias": "../other.safetensors"}}))
    assert "outside" in refusal(load_kl_vae, tmp_path)
    index.write_text(json.dumps({"weight_map": 3}))
    assert "no index" in refusal(load_kl_vae, tmp_path)
