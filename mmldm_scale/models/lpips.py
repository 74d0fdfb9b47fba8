"""LPIPS, the perceptual distance of pictures (Zhang et al. 2018): a loss of the KL-VAE's decoder, and a metric.

``load_lpips(path)`` joins torchmetrics' implementation and linear weights, which come with it, and the weights of the
backbone, which the user gives: AlexNet's or VGG16's as torchvision publishes them. Nothing is downloaded.
"""

from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.image import lpips as torchmetrics_lpips
from torchmetrics.functional.image.lpips import _NoTrainLpips  # what its metric wraps, and would download weights for

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.safe_tensors import read_tensors

LINEAR = Path(torchmetrics_lpips.__file__).parent / "lpips_models"  # where it keeps the linear weights
SMALLEST = 32  # height and width of pictures that both backbones can halve to their last features
# torchmetrics' name and torchvision's, by the shape of the first convolution's weights
BACKBONES = {(64, 3, 11, 11): ("alex", "AlexNet"), (64, 3, 3, 3): ("vgg", "VGG16")}


class LPIPS:
    """LPIPS over one backbone, frozen.

    It works in float32 on its input's device, whatever the precision around it. It is no ``nn.Module``, so that a
    module that uses it can be cast, sharded and saved without it.
    """

    def __init__(self, network: _NoTrainLpips) -> None:
        self.network = network.requires_grad_(False).eval()

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance of each picture in ``a`` from that in ``b``: (N,) float32, differentiable in both.

        Args:
            a: Pictures (N, 3, S, S) of S >= 32 in [-1, 1]; values beyond are taken as they are.
            b: Likewise.
        """
        self.network.to(a.device)
        with torch.autocast(a.device.type, enabled=False):
            return self.network(a.float(), b.float()).flatten()  # (N, 1, 1, 1) -> (N,)


def load_lpips(path: str | Path) -> LPIPS:
    """Return LPIPS over the backbone in ``path``, torchvision's AlexNet or VGG16 (.pth or .safetensors).

    The file's own shapes say which of the two it is; of its weights only the convolutions' ("features.…") are used.

    Raises:
        UserError: the file is missing or damaged, or holds another network.
    """
    state = read_tensors(Path(path), "features.")
    first = state.get("features.0.weight", torch.empty(0))
    if tuple(first.shape) not in BACKBONES:
        raise UserError(f"{path}: is no backbone of LPIPS; torchvision's weights of AlexNet or VGG16 fit")
    name, published = BACKBONES[tuple(first.shape)]
    with torch.device("meta"):  # or it would draw the whole of torchvision's network at random
        network = _NoTrainLpips(pretrained=False, net=name, pnet_rand=True)
    try:
        features = {ours: state[_published_name(ours)] for ours in network.net.state_dict()}
        network.net.load_state_dict(features, assign=True)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: its weights are not those of torchvision's {published}: {reason}") from None
    # The shared linear layers have two names each, and their file only one.
    network.load_state_dict(read_tensors(LINEAR / f"{name}.pth"), strict=False, assign=True)
    return LPIPS(network.float())


def _published_name(name: str) -> str:
    """Return torchvision's name of one of torchmetrics' weights: "slice2.3.bias" is its "features.3.bias"."""
    _, layer, kind = name.split(".")
    return f"features.{layer}.{kind}"
