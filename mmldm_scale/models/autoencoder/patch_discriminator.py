"""The discriminator of single pictures (PatchGAN, Isola et al. 2017, arXiv 1611.07004): one logit for each patch.

``PatchDiscriminator(config)(pictures)`` judges the KL-VAE's pictures while its decoder is fine-tuned.
"""

from torch import Tensor, nn

from mmldm_scale.config import PatchDiscriminatorConfig
from mmldm_scale.models.autoencoder.blocks import norm_groups

WIDEST = 8  # the widest layer has at most this many times the first layer's channels


class PatchDiscriminator(nn.Module):
    """Strided convolutions, each output of which reads one patch and is the logit that the patch is real.

    Unlike the original, it is normalised over groups of channels and not over the batch: a logit does not depend on
    other pictures, so that micro-batches and the number of processes change nothing. The statistics are those of the
    whole picture; beyond them a logit depends on its patch alone.
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
        """Return the logits (B, P·h·w) that the patches of each sample's pictures are real.

        Args:
            pictures: (B, P, 3, S, S) in [-1, 1], judged one by one; S must be at least :func:`smallest`.
        """
        logits: Tensor = self.layers(pictures.flatten(0, 1))  # (B·P, 1, h, w)
        return logits.reshape(len(pictures), -1)  # (B, P·h·w)


def smallest(config: PatchDiscriminatorConfig) -> int:
    """Return the height and width, in pixels, of the smallest pictures that have a patch."""
    return 3 * 2**config.layers


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=4, stride=stride, padding=1)
