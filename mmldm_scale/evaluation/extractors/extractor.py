"""The contract of a feature extractor: a pretrained network that turns clips into vectors.

An extractor states, as class attributes:

- ``name``: its key in protocols and reports, in snake case, after the network: "i3d", "vggish", "transnetv2", …;
- ``title``: how reports write it: "I3D (Kinetics-400) logits";
- ``reads``: "frames", "waveform" or "both";
- ``dimension``: numbers of a feature vector;
- ``classes``: number of classes, if the features can be logits of a classifier, else 0;
- ``weights``: the setting that holds the path of its pretrained weights. Weights are never downloaded.

and works in two steps:

1. :meth:`Extractor.prepare` turns a clip into the network's input, on the CPU, for each clip by itself. It resizes,
   resamples and normalises as the network's own code does.
2. :meth:`Extractor.features` turns a batch of inputs into vectors. The caller forms batches at fixed positions of a
   set, so that the number of jobs changes nothing. In evaluation mode, a clip's vector must not depend on the others
   of its batch but for rounding.

Choices that a protocol pins (logits or pooled features, evaluation or training mode, sample rate) are keyword arguments
of ``__init__``, with defaults; an unknown one is an error.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord

Reads = Literal["frames", "waveform", "both"]


class Extractor(ABC):
    """A pretrained network that turns clips into vectors; the module's text is its contract.

    Args:
        path: the pretrained weights, a file or folder; None for a package that brings its own.
        device: where the network runs.

    Raises:
        UserError: from ``__init__``, if the weights cannot be loaded or do not fit, or a package is not installed.
    """

    name: str
    title: str
    reads: Reads
    dimension: int
    classes: int = 0
    weights: str

    def __init__(self, path: Path | None, device: torch.device) -> None:
        self.path, self.device = path, device

    @abstractmethod
    def prepare(self, clip: ClipRecord) -> Tensor:
        """Return the network's input for ``clip``, float32, of the same shape for clips of the same duration.

        Raises:
            UserError: the clip has no frames or sound that the network needs, or is too short for it.
        """

    @abstractmethod
    def features(self, inputs: Tensor) -> Tensor:
        """Return the vectors of B inputs, (B, ``dimension``) float32 on the CPU. ``inputs`` is (B, …)."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return the sha256, in hex, of the weights' bytes."""
