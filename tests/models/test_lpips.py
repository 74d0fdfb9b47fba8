from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.models.lpips import load_lpips
from tests.support.tiny_models.backbones import random_features, write_alexnet

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
LINEAR = Path(torchmetrics.__file__).parent / "functional/image/lpips_models"


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory) -> Path:
    return write_alexnet(tmp_path_factory.mktemp("lpips") / "alexnet.pth")


@pytest.fixture(scope="module")
def vgg(tmp_path_factory) -> Path:
    """VGG16's convolutions with random weights, in the other format."""
    file = tmp_path_factory.mktemp("lpips") / "vgg16.safetensors"
    save_file(random_features("vgg16"), file)
    return file


def pictures(seed: int, count: int = 2, size: int = 64) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def alexnet_features(state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """The outputs of AlexNet's five rectified convolutions, straight from its description."""
    outputs = []
    for layer, stride, padding, pooled in [(0, 4, 2, 0), (3, 1, 2, 1), (6, 1, 1, 1), (8, 1, 1, 0), (10, 1, 1, 0)]:
        x = F.max_pool2d(x, 3, 2) if pooled else x
        x = F.relu(F.conv2d(x, state[f"features.{layer}.weight"], state[f"features.{layer}.bias"], stride, padding))
        outputs.append(x)
    return outputs


def vgg_features(state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """The outputs of VGG16's five blocks of rectified convolutions, each but the first after a pooling."""
    outputs = []
    for block in [(0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)]:
        x = F.max_pool2d(x, 2) if outputs else x
        for layer in block:
            x = F.relu(F.conv2d(x, state[f"features.{layer}.weight"], state[f"features.{layer}.bias"], padding=1))
        outputs.append(x)
    return outputs


def reference(features: list[list[Tensor]], linear: Path) -> Tensor:
    """LPIPS by its definition: Σ over layers of the spatial mean of w · (unit features' difference)²."""
    weights = list(torch.load(linear, "cpu", weights_only=True).values())
    total = torch.zeros(len(features[0][0]))
    for a, b, weight in zip(*features, weights, strict=True):
        difference = F.normalize(a, dim=1) - F.normalize(b, dim=1)
        total += (weight.view(1, -1, 1, 1) * difference.square()).sum(dim=1).mean(dim=(1, 2))
    return total


def standard(x: Tensor) -> Tensor:
    return (x - torch.tensor(SHIFT).view(1, 3, 1, 1)) / torch.tensor(SCALE).view(1, 3, 1, 1)


def test_it_is_its_definition_over_alexnet(alexnet):
    state, a, b = torch.load(alexnet, weights_only=True), pictures(0), pictures(1)
    expected = reference([alexnet_features(state, standard(x)) for x in (a, b)], LINEAR / "alex.pth")
    torch.testing.assert_close(load_lpips(alexnet)(a, b), expected, rtol=1e-4, atol=1e-6)


def test_it_is_its_definition_over_vgg(vgg):
    state, a, b = load_file(vgg), pictures(0, 1, 32), pictures(1, 1, 32)
    expected = reference([vgg_features(state, standard(x)) for x in (a, b)], LINEAR / "vgg.pth")
    torch.testing.assert_close(load_lpips(vgg)(a, b), expected, rtol=1e-4, atol=1e-6)


def test_both_pictures_get_gradients_and_nothing_else_does(alexnet):
    distance, a, b = load_lpips(alexnet), pictures(0).requires_grad_(), pictures(1).requires_grad_()
    distance(a, b).sum().backward()
    assert a.grad.abs().sum() > 0
    assert b.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in distance.network.parameters())
    assert distance(a, a.detach()).abs().max() < 1e-6


def test_it_works_in_float32_whatever_is_around_it(alexnet):
    distance, a, b = load_lpips(alexnet), pictures(0), pictures(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distance(a, b), distance(a.double(), b))
    torch.testing.assert_close(distance(a.bfloat16(), b.bfloat16()), distance(a, b), rtol=0.02, atol=1e-3)


def test_loading_moves_no_generator(alexnet):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_lpips(alexnet)
    assert torch.equal(torch.rand(1), expected)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load_lpips(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_refusals(alexnet, tmp_path):
    refusal(tmp_path / "nowhere.pth")
    (tmp_path / "cut.pth").write_bytes(alexnet.read_bytes()[:100_000])
    refusal(tmp_path / "cut.pth")
    state = torch.load(alexnet, weights_only=True)
    files = {
        "classifier": {"classifier.1.weight": torch.zeros(2)},
        "vgg19": {**state, "features.0.weight": torch.zeros(64, 3, 3, 3)},
        "part": {name: tensor for name, tensor in state.items() if name != "features.8.bias"},
        "narrow": {**state, "features.3.weight": torch.zeros(96, 64, 5, 5)},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    assert "AlexNet or VGG16" in refusal(tmp_path / "classifier")
    assert "torchvision's VGG16" in refusal(tmp_path / "vgg19")
    assert "features.8.bias" in refusal(tmp_path / "part")
    assert "torchvision's AlexNet" in refusal(tmp_path / "narrow")
