"""The discriminator of single pictures (Isola et al. 2017, "PatchGAN"): one verdict for each patch of a picture."""

from torch import Tensor, nn

from mmldm_scale.config import PatchDiscriminatorConfig
from mmldm_scale.models.autoencoder.blocks import norm_groups

WIDEST = 8  # times the first layer's width


class PatchDiscriminator(nn.Module):
    """Strided convolutions whose every output sees one patch and says whether it is real.

    It is normalised over groups of channels and not over the batch, as the original is: no verdict hangs on the other
    pictures, so that micro-batches and the number of processes change nothing. (The statistics are those of the whole
    picture, so a verdict knows that much of what lies beyond its patch.)
    """

    def __init__(self, config: PatchDiscriminatorConfig) -> None:
        super().__init__()
        widths = [config.width * min(2**level, WIDEST) for level in range(config.layers + 1)]
        layers: list[nn.Module] = [_convolution(3, widths[0], stride=2), nn.LeakyReLU(0.2)]
        strides = [2] * (config.layers - 1) + [1]
        for inputs, outputs, stride in zip(widths, widths[1:], strides, strict=False):
            norm = nn.GroupNorm(norm_groups(outputs), outputs)
            layers += [_convolution(inputs, outputs, stride), norm, nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, _convolution(widths[-1], 1, stride=1))

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the logits of being real of each sample's patches, (B, n).

        Args:
            pictures: (B, P, 3, S, S) in [-1, 1], each judged by itself; S is at least :func:`smallest`.
        """
        verdicts = self.layers(pictures.flatten(0, 1))  # (B·P, 1, h, w)
        return verdicts.reshape(len(pictures), -1)


def smallest(config: PatchDiscriminatorConfig) -> int:
    """Return the height and width of the smallest pictures that give a verdict."""
    return 3 * 2**config.layers


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=4, stride=stride, padding=1)
