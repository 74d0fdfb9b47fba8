"""Backbones of perceptual metrics with random weights, named as torchvision publishes the trained ones."""

import math
from pathlib import Path
from typing import Literal

import torch
import torchvision
from torch import Tensor


def random_features(network: Literal["alexnet", "vgg16"]) -> dict[str, Tensor]:
    """Return the convolutions of ``network`` with random weights of about unit gain."""
    random = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        features = torchvision.models.get_model(network).features
    return {
        f"features.{name}": torch.randn(tensor.shape, generator=random) / math.sqrt(tensor[0].numel())
        for name, tensor in features.state_dict().items()
    }


def write_alexnet(file: Path) -> Path:
    """Write AlexNet's to ``file`` and return it."""
    torch.save(random_features("alexnet"), file)
    return file
