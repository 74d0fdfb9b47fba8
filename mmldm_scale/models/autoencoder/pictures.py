"""The pictures of a clip as one tensor: its frames and, last, its audio image, as far as a model has them.

The KL-VAE takes pictures of both modalities together, and so do the losses. Pictures are (B, P, …), where P is the
number of frames, plus 1 with the audio image.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmldm_scale.common.modalities import Modality


def join(parts: Mapping[Modality, Tensor]) -> Tensor:
    """Return the pictures (B, P, ...) of "video" (B, K, ...) and "audio" (B, 1, ...), of which one may be missing."""
    return torch.cat([parts[name] for name in ("video", "audio") if name in parts], dim=1)


def split(pictures: Tensor, modalities: Sequence[Modality]) -> dict[Modality, Tensor]:
    """Return the ``pictures`` (B, P, ...) of each of ``modalities``: "audio" (B, 1, ...), "video" (B, K, ...)."""
    frames = pictures.shape[1] - ("audio" in modalities)
    parts: dict[Modality, Tensor] = {"audio": pictures[:, frames:], "video": pictures[:, :frames]}
    return {name: parts[name] for name in modalities}
