"""I3D against an independent calculation from its paper, with weights of the published names and shapes."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.extractors.i3d import I3D, InceptionI3D, same_pad
from tests.support.datasets.clip_records import random_clip

CPU = torch.device("cpu")
FRAMES = 9  # the fewest
# The network as figure 3 of the paper has it. Each entry of a module: its input, and channels of its six convolutions.
STEM = {"Conv3d_1a_7x7": (3, 64, 7), "Conv3d_2b_1x1": (64, 64, 1), "Conv3d_2c_3x3": (64, 192, 3)}
MODULES = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}
PUBLISHED_PARAMETERS = 12_697_264  # of pytorch-i3d with 400 classes


def convolutions() -> dict[str, tuple[int, int, int]]:
    """Inputs, outputs and kernel of each convolution by the name of its unit."""
    found = dict(STEM)
    for name, (inputs, b0, b1a, b1b, b2a, b2b, b3b) in MODULES.items():
        found |= {f"{name}.b0": (inputs, b0, 1), f"{name}.b1a": (inputs, b1a, 1), f"{name}.b1b": (b1a, b1b, 3)}
        found |= {f"{name}.b2a": (inputs, b2a, 1), f"{name}.b2b": (b2a, b2b, 3), f"{name}.b3b": (inputs, b3b, 1)}
    return found


def random_weights() -> dict[str, Tensor]:
    """A state dict as it is published, without the counters of batches, which older files do not have."""
    random = torch.Generator().manual_seed(0)
    state = {}
    for unit, (inputs, outputs, kernel) in convolutions().items():
        size = inputs * kernel**3
        shape = (outputs, inputs, kernel, kernel, kernel)
        state[f"{unit}.conv3d.weight"] = torch.randn(shape, generator=random) * math.sqrt(2 / size)
        for name, low, high in (("weight", 0.8, 1.2), ("bias", -0.1, 0.3), ("running_mean", -0.1, 0.1)):
            state[f"{unit}.bn.{name}"] = torch.rand(outputs, generator=random) * (high - low) + low
        state[f"{unit}.bn.running_var"] = torch.rand(outputs, generator=random) + 0.5
    state["logits.conv3d.weight"] = torch.randn((400, 1024, 1, 1, 1), generator=random) / 32
    state["logits.conv3d.bias"] = torch.randn(400, generator=random)
    return state


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights()


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("i3d") / "i3d_pretrained_400.pt"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def inputs(file) -> Tensor:
    """Two clips as I3D reads them."""
    extractor = I3D(file, CPU, frames=FRAMES)
    return torch.stack([extractor.prepare(random_clip(FRAMES, 32, 32, seed)) for seed in range(2)])


def widened(x: Tensor, kernel: int, stride: int, value: float) -> Tensor:
    """``x`` (C, T, H, W) with "SAME" padding as TensorFlow's manual defines it, axis by axis."""
    for axis in (1, 2, 3):
        length = x.shape[axis]
        rest = length % stride
        pad = max(kernel - (rest or stride), 0)
        before, after = list(x.shape), list(x.shape)
        before[axis], after[axis] = pad // 2, pad - pad // 2
        x = torch.cat([torch.full(before, value), x, torch.full(after, value)], dim=axis)
    return x


def convolved(state: Mapping[str, Tensor], unit: str, x: Tensor, stride: int = 1) -> Tensor:
    """A unit as one convolution: the normalisation is folded into its weights and bias."""
    gain = state[f"{unit}.bn.weight"] / torch.sqrt(state[f"{unit}.bn.running_var"] + 0.001)
    weight = state[f"{unit}.conv3d.weight"] * gain[:, None, None, None, None]
    bias = state[f"{unit}.bn.bias"] - state[f"{unit}.bn.running_mean"] * gain
    return F.conv3d(widened(x, weight.shape[-1], stride, 0.0)[None], weight, bias, stride)[0].clamp(min=0)


def pooled(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Maxima over time, height and width one after another, with padding that is never a maximum."""
    for axis, (size, step) in enumerate(zip(kernel, stride, strict=True), start=1):
        pad = max(size - (x.shape[axis] % step or step), 0)
        edges = [list(x.shape), list(x.shape)]
        edges[0][axis], edges[1][axis] = pad // 2, pad - pad // 2
        x = torch.cat([torch.full(edges[0], -torch.inf), x, torch.full(edges[1], -torch.inf)], dim=axis)
        x = x.unfold(axis, size, step).amax(dim=-1)
    return x


def expected_layers(state: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """The output of each layer for a clip (3, T, 224, 224)."""
    layers = {"Conv3d_1a_7x7": convolved(state, "Conv3d_1a_7x7", x, stride=2)}
    layers["Conv3d_2b_1x1"] = convolved(state, "Conv3d_2b_1x1", pooled(layers["Conv3d_1a_7x7"], (1, 3, 3), (1, 2, 2)))
    layers["Conv3d_2c_3x3"] = convolved(state, "Conv3d_2c_3x3", layers["Conv3d_2b_1x1"])
    x = pooled(layers["Conv3d_2c_3x3"], (1, 3, 3), (1, 2, 2))
    for name in MODULES:
        if name == "Mixed_4b":
            x = pooled(x, (3, 3, 3), (2, 2, 2))
        if name == "Mixed_5b":
            x = pooled(x, (2, 2, 2), (2, 2, 2))
        branches = [convolved(state, f"{name}.b0", x)]
        branches += [convolved(state, f"{name}.{b}b", convolved(state, f"{name}.{b}a", x)) for b in ("b1", "b2")]
        branches += [convolved(state, f"{name}.b3b", pooled(x, (3, 3, 3), (1, 1, 1)))]
        x = layers[name] = torch.cat(branches)
    last = torch.stack([x[:, start : start + 2].mean(dim=(1, 2, 3)) for start in range(x.shape[1] - 1)])  # (T′, 1024)
    layers["features"] = last.mean(dim=0)
    classifier = state["logits.conv3d.weight"].flatten(1)
    layers["logits"] = (last @ classifier.T + state["logits.conv3d.bias"]).mean(dim=0)
    return layers


@pytest.fixture(scope="module")
def layers(file, inputs) -> dict[str, Tensor]:
    """The outputs of all layers for the second of two clips, and the logits of both."""
    extractor = I3D(file, CPU, frames=FRAMES)
    outputs: dict[str, Tensor] = {}
    for name in ("", *STEM, *MODULES):
        layer = extractor.network.get_submodule(name)
        layer.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output[1]}))
    outputs["logits"] = extractor.features(inputs)
    return outputs


def test_each_layer_is_the_papers(weights, inputs, layers) -> None:
    """The clip is one of two, the calculation knows it alone: the other does not matter."""
    expected = expected_layers(weights, inputs[1])

    for name in (*STEM, *MODULES):
        torch.testing.assert_close(layers[name], expected[name], rtol=1e-4, atol=1e-4, msg=name)
    torch.testing.assert_close(layers["logits"][1], expected["logits"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layers[""].mean(dim=(1, 2, 3)), expected["features"], rtol=1e-4, atol=1e-4)


def test_features_are_the_layer_before_the_classifier(file, inputs, layers, monkeypatch) -> None:
    extractor = I3D(file, CPU, output="features", frames=FRAMES)
    monkeypatch.setattr(extractor.network, "forward", lambda x: layers[""][None])

    features = extractor.features(inputs[1:])

    assert features.shape == (1, extractor.dimension) == (1, 1024)
    assert torch.equal(features[0], layers[""].mean(dim=(1, 2, 3)))
    assert extractor.classes == 0


def test_other_clips_have_other_logits(layers) -> None:
    assert layers["logits"].shape == (2, 400)
    assert (layers["logits"][0] - layers["logits"][1]).norm() > 0.01 * layers["logits"].norm()


def test_parameters_are_those_that_are_published(weights) -> None:
    with torch.device("meta"):
        network = InceptionI3D()

    assert sum(parameter.numel() for parameter in network.parameters()) == PUBLISHED_PARAMETERS
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    counters = {f"{unit}.bn.num_batches_tracked": () for unit in convolutions()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in weights.items()} | counters


@pytest.mark.parametrize(
    ("length", "kernel", "stride", "before", "after"),
    [(224, 7, 2, 2, 3), (112, 3, 2, 0, 1), (7, 3, 2, 1, 1), (7, 2, 2, 0, 1), (14, 2, 2, 0, 0), (5, 3, 1, 1, 1)],
)
def test_padding_is_tensorflows(length, kernel, stride, before, after) -> None:
    """The amounts are those that TensorFlow 2 pads with."""
    x = torch.ones(1, 1, length, 1, 1)

    padded = same_pad(x, (kernel, 1, 1), (stride, 1, 1)).flatten()

    assert padded.tolist() == [0] * before + [1] * length + [0] * after


def test_mmdiffusions_pixels(file) -> None:
    """16 frames at 10 per second, fitted into 64² pixels, to [-1, 1] and back with truncation, scaled to 224²."""
    extractor = I3D(file, CPU, frame_rate=10, reduce_to=64, truncate=True)
    clip = random_clip(48, 90, 160, frame_rate=30)
    frames = torch.from_numpy(clip.clip.frames[::3].copy()).permute(0, 3, 1, 2).float()
    reduced = F.interpolate(frames, (36, 64), mode="bicubic").clamp(0, 255).round()
    levels = np.floor((reduced.numpy() / np.float32(127.5) - np.float32(1) + np.float32(1)) * np.float32(127.5))
    squares = np.zeros((16, 3, 64, 64), np.float32)
    squares[:, :, 14:50] = levels
    expected = F.interpolate(torch.from_numpy(squares) / 255, (224, 224), mode="bilinear") * 2 - 1

    prepared = extractor.prepare(clip)

    assert prepared.shape == (3, 16, 224, 224)
    torch.testing.assert_close(prepared, expected.transpose(0, 1), rtol=0, atol=1e-6)
    assert prepared.min() == -1
    extractor.truncate = False
    assert 0 < (extractor.prepare(clip) - prepared).max() < 2.01 / 255


class Scripted(nn.Module):
    """Has the signature of StyleGAN-V's archive; its logits are means of pixels."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Tensor:
        logits = x.mean(dim=(2, 3, 4)).repeat(1, self.outputs)[:, : self.outputs]
        if rescale or resize:
            logits = logits * 0
        return logits if return_features else logits.softmax(dim=1)


class WithoutSwitches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def archive(network: nn.Module, path: Path) -> Path:
    torch.jit.script(network).save(str(path))
    return path


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_archive_gives_the_values_before_its_softmax(tmp_path, inputs, caplog) -> None:
    path = archive(Scripted(400), tmp_path / "i3d_torchscript.pt")
    extractor = I3D(path, CPU, frames=FRAMES)

    logits = extractor.features(inputs)

    torch.testing.assert_close(logits[:, :3], inputs.mean(dim=(2, 3, 4)))
    assert "is a TorchScript archive: the code in it runs" in caplog.text
    assert extractor.fingerprint() == sha256(path)
    with pytest.raises(UserError, match="is a TorchScript archive, which gives logits only"):
        I3D(path, CPU, output="features")


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("network", [Scripted(10), WithoutSwitches()])
def test_another_torchscript_archive_is_refused(tmp_path, inputs, network) -> None:
    extractor = I3D(archive(network, tmp_path / "other.pt"), CPU, frames=FRAMES)

    with pytest.raises(UserError, match=r"other.pt: is not StyleGAN-V's I3D") as raised:
        extractor.features(inputs)
    assert "\n" not in str(raised.value)


def test_other_weights_are_refused(weights, tmp_path) -> None:
    other = {name: tensor for name, tensor in weights.items() if "Mixed_5c" not in name}
    torch.save(other, tmp_path / "other.pt")
    (tmp_path / "damaged.pt").write_bytes(b"PK")

    with pytest.raises(UserError, match=r"other.pt: its weights are not those of I3D with 400 classes: .*Mixed_5c.b0"):
        I3D(tmp_path / "other.pt", CPU)
    for name in ("damaged.pt", "absent.pt"):
        with pytest.raises(UserError, match=rf"{name}: cannot be read as weights"):
            I3D(tmp_path / name, CPU)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"frames": 8}, "frames must be at least 9, not 8"), ({"output": "pool"}, "must be 'logits' or 'features'")],
)
def test_wrong_options(file, options, message) -> None:
    with pytest.raises(UserError, match=message):
        I3D(file, CPU, **options)
