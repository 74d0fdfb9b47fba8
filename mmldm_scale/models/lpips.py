"""LPIPS, the perceptual distance of pictures (Zhang et al. 2018): a loss of the KL-VAE's decoder, and a metric.

``load_lpips(path)`` combines torchmetrics' implementation and linear weights, which are part of that package, with the
backbone's weights in ``path``: AlexNet's or VGG16's, as torchvision publishes them. Nothing is downloaded.
"""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchmetrics.functional.image import lpips as torchmetrics_lpips
from torchmetrics.functional.image.lpips import _NoTrainLpips  # torchmetrics' metric wraps it, but downloads weights

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.safe_tensors import read_tensors

LINEAR = Path(torchmetrics_lpips.__file__).parent / "lpips_models"  # torchmetrics' folder of linear weights
SMALLEST = 32  # pixels: the least height and width of pictures for which both backbones have features at every layer
REASON_LENGTH = 300  # characters of torch's message that are repeated in an error
# The names in torchmetrics and torchvision of each backbone, by the shape of its first convolution's weights.
BACKBONES: dict[tuple[int, ...], tuple[Literal["alex", "vgg"], str]] = {
    (64, 3, 11, 11): ("alex", "AlexNet"),
    (64, 3, 3, 3): ("vgg", "VGG16"),
}


class LPIPS:
    """LPIPS over one backbone, frozen.

    It computes in float32 on its input's device, also under autocast. It is not an ``nn.Module``, so that a module that
    uses it can be cast, sharded and saved without it.
    """

    def __init__(self, network: _NoTrainLpips) -> None:
        self.network = network.requires_grad_(False).eval()

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance of each picture in ``a`` from its partner in ``b``, (N,) float32; at least 0.

        It is differentiable in both. Source: Zhang et al. 2018, arXiv 1801.03924.

        Args:
            a: Pictures (N, 3, S, S), S at least 32, in [-1, 1]; values outside are not clamped.
            b: Likewise.
        """
        self.network.to(a.device)
        with torch.autocast(a.device.type, enabled=False):
            distance: Tensor = self.network(a.float(), b.float())  # (N, 1, 1, 1)
            return distance.flatten()  # (N,)


def load_lpips(path: str | Path) -> LPIPS:
    """Return LPIPS over the backbone in ``path``, torchvision's AlexNet or VGG16 (.pth or .safetensors).

    The shapes in the file decide which of the two it is. Only the convolutions' weights ("features.…") are used.

    Raises:
        UserError: the file is missing or damaged, or holds another network.
    """
    state = read_tensors(Path(path), "features.")
    first_shape = tuple(state["features.0.weight"].shape) if "features.0.weight" in state else ()
    if first_shape not in BACKBONES:
        raise UserError(f"{path}: holds no backbone of LPIPS; must be torchvision's weights of AlexNet or VGG16")
    name, torchvision_name = BACKBONES[first_shape]
    with torch.device("meta"):  # elsewhere torchvision would draw random weights, which moves the global generator
        network = _NoTrainLpips(pretrained=False, net=name, pnet_rand=True)
    try:
        features = {key: state[_torchvision_key(key)] for key in network.net.state_dict()}
        network.net.load_state_dict(features, assign=True)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:REASON_LENGTH]
        raise UserError(f"{path}: its weights are not those of torchvision's {torchvision_name}: {reason}") from None
    # Not strict: the module has each linear layer under two names, the file under one.
    network.load_state_dict(read_tensors(LINEAR / f"{name}.pth"), strict=False, assign=True)
    return LPIPS(network.float())


def _torchvision_key(key: str) -> str:
    """Return torchvision's key for a key of torchmetrics' network: "slice2.3.bias" is "features.3.bias" there."""
    _, layer, parameter = key.split(".")
    return f"features.{layer}.{parameter}"
