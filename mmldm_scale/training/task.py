"""What a trainer needs to know of a model: a task joins a module, its data and its ways out.

``mmldm train NAME`` builds the task of that name (``training/kl_vae.py``, ``training/autoencoder.py``,
``training/dit.py``) and hands it to :func:`mmldm_scale.training.loop.train`, which knows of no model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mmldm_scale.training.quarantine import Quarantine


class Dataset(Protocol):
    """The endless data of a run, addressed by global position."""

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """Return the sample at ``position``, without a batch dimension: a pure function of (seed, position)."""


class Preview(Protocol):
    """Where a task shows what it makes (TensorBoard)."""

    def image(self, tag: str, image: Tensor) -> None:
        """Show ``image``, (3, H, W) in [0, 1]."""

    def video(self, tag: str, frames: np.ndarray, fps: float) -> None:
        """Show ``frames``, (F, H, W, 3) uint8, moving at ``fps`` frames per second."""

    def audio(self, tag: str, waveform: Tensor, sample_rate: int) -> None:
        """Offer ``waveform``, (N,) in [-1, 1] at ``sample_rate`` Hz, to be listened to."""


@dataclass
class Task:
    """One kind of training.

    Attributes:
        name: The kind of its weights folders.
        module: ``module(batch)`` returns per-sample values, each (B,); "loss" is what is minimised, the others are
            logged under their names. Parameters that do not require gradients stay as they are.
        dataset: The samples by global position.
        inputs: Fingerprints of what it learns from, by configuration key: a run is not carried on with others.
        flops_per_sample: Floating-point operations of one sample's forward pass (twice the MACs).
        write_weights: Called as ``write_weights(folder, state)`` with the averaged float32 ``state`` of ``module``
            (names as in ``module.state_dict()``).
        preview: Called on every rank as ``preview(module, preview)`` at intervals; must be deterministic.
        quarantine: The samples found damaged; how many there are is logged.
    """

    name: Literal["kl_vae", "autoencoder", "dit"]
    module: nn.Module
    dataset: Dataset
    inputs: dict[str, str]
    flops_per_sample: float
    write_weights: Callable[[Path, dict[str, torch.Tensor]], None]
    preview: Callable[[nn.Module, Preview], None] | None = None
    quarantine: Quarantine | None = None
