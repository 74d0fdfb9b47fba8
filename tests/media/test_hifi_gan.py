"""HiFi-GAN in its authors' format and in transformers' sounds as the paper has it; all else is refused in a line."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.vocoder import load_vocoder

PAPER = MediaConfig()

# --- The authors' format ----------------------------------------------------------------------------------------------

VALUES = {  # V1's config.json, narrower
    "resblock": "1",
    "num_gpus": 0,
    "upsample_rates": [8, 8, 2, 2],
    "upsample_kernel_sizes": [16, 16, 4, 4],
    "upsample_initial_channel": 32,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "num_mels": 80,
    "n_fft": 1024,
    "hop_size": 256,
    "win_size": 1024,
    "sampling_rate": 22050,
    "fmin": 0,
    "fmax": 8000,
    "fmax_for_loss": None,
}


def random_generator() -> dict[str, Tensor]:
    """Return a generator's state in the names and weight normalisation of the authors' checkpoints."""
    random = torch.Generator().manual_seed(0)
    state = {}

    def add(name: str, *shape: int, bias: int, norm: float = 1.0) -> None:
        state[f"{name}.weight_v"] = torch.randn(shape, generator=random)
        state[f"{name}.weight_g"] = norm * (0.5 + torch.rand(shape[0], 1, 1, generator=random))
        state[f"{name}.bias"] = 0.1 * torch.randn(bias, generator=random)

    width = VALUES["upsample_initial_channel"]
    add("conv_pre", width, 80, 7, bias=width, norm=0.3)
    for level, kernel in enumerate(VALUES["upsample_kernel_sizes"]):
        add(f"ups.{level}", width, width // 2, kernel, bias=width // 2, norm=math.sqrt(kernel) / 2)
        width //= 2
        for block, size in enumerate(VALUES["resblock_kernel_sizes"]):
            for part in ("convs1", "convs2"):
                for convolution in range(3):
                    add(f"resblocks.{3 * level + block}.{part}.{convolution}", width, width, size, bias=width)
    add("conv_post", 1, width, 7, bias=1, norm=0.5)
    return state


def plain_weight(state: dict[str, Tensor], name: str) -> Tensor:
    """Return g · v / ‖v‖, a norm for each first index (Salimans and Kingma 2016)."""
    v = state[f"{name}.weight_v"].double()
    norms = torch.stack([row.square().sum().sqrt() for row in v]).view(-1, 1, 1)
    return state[f"{name}.weight_g"].double() * v / norms


def reference_waveform(state: dict[str, Tensor], mel: Tensor) -> Tensor:
    """HiFi-GAN's generator (Kong et al. 2020, Figure 1) with :data:`VALUES`, written out: (80, T) -> (256 · T,)."""

    def weights(name: str) -> tuple[Tensor, Tensor]:
        return plain_weight(state, name), state[f"{name}.bias"].double()

    x = F.conv1d(mel.double()[None], *weights("conv_pre"), padding=3)
    for level, (rate, kernel) in enumerate(zip(VALUES["upsample_rates"], VALUES["upsample_kernel_sizes"], strict=True)):
        padding = (kernel - rate) // 2
        x = F.conv_transpose1d(F.leaky_relu(x, 0.1), *weights(f"ups.{level}"), stride=rate, padding=padding)
        branches = []
        for block, size in enumerate(VALUES["resblock_kernel_sizes"]):
            y = x
            for convolution, dilation in enumerate((1, 3, 5)):
                name = f"resblocks.{3 * level + block}.convs{{}}.{convolution}"
                z = F.conv1d(
                    F.leaky_relu(y, 0.1),
                    *weights(name.format(1)),
                    padding=dilation * (size - 1) // 2,
                    dilation=dilation,
                )
                y = y + F.conv1d(F.leaky_relu(z, 0.1), *weights(name.format(2)), padding=(size - 1) // 2)
            branches.append(y)
        x = sum(branches) / 3
    return F.conv1d(F.leaky_relu(x, 0.01), *weights("conv_post"), padding=3).tanh().flatten()


def original(folder: Path, checkpoint: str = "generator_v1", **changed: object) -> Path:
    """Write a generator as its authors do and return its folder."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(VALUES | changed))
    torch.save({"generator": random_generator()}, folder / checkpoint, _use_new_zipfile_serialization=False)
    return folder


def file_itself(tmp_path: Path) -> Path:
    return original(tmp_path / "a", "g_02500000") / "g_02500000"


def beside_the_discriminators(tmp_path: Path) -> Path:
    folder = original(tmp_path / "a", "g_02500000")
    torch.save({"mpd": {}, "steps": 2500000}, folder / "do_02500000")
    return folder


def safetensors(tmp_path: Path) -> Path:
    folder = original(tmp_path / "a")
    (folder / "generator_v1").unlink()
    save_file(random_generator(), folder / "UNIVERSAL_V1.safetensors")
    return folder


def weight_norm_removed(tmp_path: Path) -> Path:
    folder = original(tmp_path / "a")
    state = random_generator()
    modules = {name.removesuffix(".bias") for name in state if name.endswith(".bias")}
    plain = {name: tensor for name, tensor in state.items() if name.endswith(".bias")}
    for name in modules:
        plain[f"{name}.weight"] = plain_weight(state, name)
    torch.save({"generator": plain}, folder / "generator_v1")
    return folder


@pytest.mark.parametrize(
    "layout",
    [lambda p: original(p / "a"), file_itself, beside_the_discriminators, safetensors, weight_norm_removed],
    ids=["folder", "file", "training folder", "safetensors", "weight norm removed"],
)
def test_the_authors_generator_sounds_as_they_define_it(tmp_path, layout):
    decibels = torch.rand(1, 80, 20, generator=torch.Generator().manual_seed(0)) * 80 - 70
    sound = load_vocoder(str(layout(tmp_path)), PAPER.audio)(decibels, 20 * 256)
    expected = reference_waveform(random_generator(), (10 ** (decibels[0].double() / 20)).log())
    assert 0.05 < expected.std() < 0.9  # neither silence nor saturation
    assert (sound[0] - expected).abs().max() < 1e-4


def test_all_that_differs_is_said_at_once(tmp_path):
    folder = original(tmp_path / "a", fmax=None, n_fft=2048, fmin=20)
    audio = AudioImageConfig(sample_rate=16000, win_length=800, hop_length=200, n_mels=64)
    with pytest.raises(UserError) as error:
        load_vocoder(str(folder), audio)
    text = str(error.value)
    assert "\n" not in text
    for part in (
        "sampling_rate is 22050, but media.audio.sample_rate is 16000",
        "n_fft is 2048, but media.audio.n_fft is 1024",
        "win_size is 1024, but media.audio.win_length is 800",
        "hop_size is 256, but media.audio.hop_length is 200",
        "num_mels is 80, but media.audio.n_mels is 64",
        "fmin is 20, but media.audio.f_min is 0",
        "fmax is 11025.0, but media.audio.f_max is 8000",
    ):
        assert part in text


def test_what_the_config_does_not_say_is_not_asked(tmp_path):
    folder = original(tmp_path / "a")
    values = {key: value for key, value in VALUES.items() if key not in ("n_fft", "win_size", "fmin", "fmax")}
    (folder / "config.json").write_text(json.dumps(values))
    load_vocoder(str(folder), PAPER.audio)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"resblock": "2"}, "V1 or V2"),
        ({"upsample_rates": [8, 8, 4, 2]}, "multiply to 512"),
        ({"upsample_initial_channel": 64}, "size mismatch"),
        ({"resblock_kernel_sizes": [3, 7]}, "Unexpected key"),
        ({"upsample_rates": "8822"}, "cannot be loaded"),
        ({"num_mels": 80.5}, "cannot be loaded"),
    ],
)
def test_what_is_no_generator_of_theirs_is_refused(tmp_path, changed, text):
    assert text in refusal(original(tmp_path / "a", **changed))


def test_one_generator_is_needed(tmp_path):
    folder = original(tmp_path / "a", "g_00000001")
    (folder / "g_00000002").write_bytes((folder / "g_00000001").read_bytes())
    assert "2 generators, such as g_00000002" in refusal(folder)
    load_vocoder(str(folder / "g_00000002"), PAPER.audio)
    for file in folder.glob("g_*"):
        file.unlink()
    assert "contains no weights" in refusal(folder)


def test_a_generator_lacking_half_of_its_weights_is_refused(tmp_path):
    folder = original(tmp_path / "a")
    state = random_generator()
    del state["ups.1.weight_g"]
    torch.save({"generator": state}, folder / "generator_v1")
    assert "'ups.1.weight_g' is missing" in refusal(folder)


# --- transformers' format ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.manual_seed(0)
    config = SpeechT5HifiGanConfig(
        model_in_dim=80,
        sampling_rate=22050,
        upsample_initial_channel=16,
        upsample_rates=[8, 8, 2, 2],
        upsample_kernel_sizes=[16, 16, 4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
    )
    model = SpeechT5HifiGan(config)
    for parameter in model.parameters():
        parameter.data.mul_(8)  # so that it is heard
    model.mean.normal_(std=2)  # what its inputs are normalised by
    model.save_pretrained(tmp_path / "hifigan")
    return tmp_path / "hifigan"


def test_hifi_gan_gets_natural_logarithms(folder):
    decibels = torch.rand(2, 80, 138, generator=torch.Generator().manual_seed(0)) * 130 - 110  # some below its clamp
    sound = load_vocoder(str(folder), PAPER.audio)(decibels, PAPER.audio_samples)
    assert sound.shape == (2, PAPER.audio_samples)
    model = SpeechT5HifiGan.from_pretrained(folder).eval()
    magnitude = (10 ** (decibels.double() / 20)).clamp(min=1e-5)
    with torch.no_grad():
        expected = model(magnitude.log().float().transpose(1, 2))[:, : PAPER.audio_samples]
    assert expected.std() > 1e-3
    assert (sound - expected).abs().max() < 1e-4 * expected.abs().max() + 1e-6


def test_hifi_gan_depends_on_the_spectrogram_alone(folder):
    decibels = torch.rand(3, 80, 20) * 60 - 60
    vocoder = load_vocoder(str(folder), PAPER.audio)
    assert vocoder(decibels[2:], 5000)[0].equal(vocoder(decibels, 5000)[2])
    assert vocoder(decibels, 6000).shape == (3, 6000)  # more than it gives: silence at the end


@pytest.mark.parametrize(
    ("key", "value"), [("sample_rate", 16000), ("n_mels", 64), ("hop_length", 400)], ids=["rate", "mels", "hop"]
)
def test_a_vocoder_for_other_mels_is_refused(folder, key, value):
    with pytest.raises(UserError, match=rf"{key} is {value}") as caught:
        load_vocoder(str(folder), dataclasses.replace(AudioImageConfig(), **{key: value}))
    assert str(folder) in str(caught.value)


def as_a_torch_file(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_a_torch_file_of_transformers_is_read(folder):
    decibels = torch.rand(1, 80, 20, generator=torch.Generator().manual_seed(0)) * 60 - 60
    expected = load_vocoder(str(folder), PAPER.audio)(decibels, 5000)
    as_a_torch_file(folder)
    assert load_vocoder(str(folder), PAPER.audio)(decibels, 5000).equal(expected)


class Code:
    def __reduce__(self) -> tuple:
        return open, ("/nowhere/at/all", "w")  # would raise FileNotFoundError if it ran


def hide_code(folder: Path) -> None:
    as_a_torch_file(folder)
    torch.save({"mean": Code()}, folder / "pytorch_model.bin")


def change_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state.pop("conv_post.bias")
    save_file(state, folder / "model.safetensors")


def change_config(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "model_type": "bert"}))


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load_vocoder(str(path), AudioImageConfig())
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
        (lambda f: (f / "config.json").write_text("[]"), "cannot be loaded"),
        (hide_code, "io.open"),
        (lambda f: (f / "model.safetensors").unlink(), "expected model.safetensors or pytorch_model.bin"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 100), "cannot be read"),
        (change_weights, "conv_post.bias"),
        (change_config, "bert"),
    ],
    ids=["no config", "broken config", "list", "code", "no weights", "broken weights", "missing weight", "other model"],
)
def test_what_is_no_vocoder_is_refused_in_a_line(folder, damage, text):
    damage(folder)
    assert text in refusal(folder)


def test_a_missing_folder_is_refused(tmp_path):
    assert "absent" in refusal(tmp_path / "absent")


def test_magnitudes_are_decibels_of_20(folder):
    vocoder = load_vocoder(str(folder), PAPER.audio)
    seen = []
    vocoder.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    vocoder(torch.full((1, 80, 3), 20.0), 100)
    assert seen[0].mean().item() == pytest.approx(math.log(10))  # +20 dB is a magnitude of 10
