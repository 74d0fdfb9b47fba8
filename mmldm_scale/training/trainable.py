"""What a trainer needs to know of a model: a trainable joins a module, its data and its ways out.

``mmldm train NAME`` builds the trainable of that name (``trainables/kl_vae/trainable.py``,
``trainables/autoencoder/trainable.py``, ``trainables/dit/trainable.py``) and hands it to
:func:`mmldm_scale.training.loop.train`, which knows of no model.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mmldm_scale.config import AdversarialConfig
from mmldm_scale.training.data.quarantine import Quarantine


class Dataset(Protocol):
    """The endless data of a run, addressed by global position."""

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """Return the sample at ``position``, without a batch dimension: a pure function of (seed, position)."""


class ValidationSet(Protocol):
    """Samples that are not trained on, by index from 0 on."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        """Return the samples ``indices``, each without a batch dimension: a pure function of its index."""


class Preview(Protocol):
    """Where a trainable shows what it makes (TensorBoard)."""

    def image(self, tag: str, image: Tensor) -> None:
        """Show ``image``, (3, H, W) in [0, 1]."""

    def video(self, tag: str, frames: np.ndarray, fps: float) -> None:
        """Show ``frames``, (F, H, W, 3) uint8, moving at ``fps`` frames per second."""

    def audio(self, tag: str, waveform: Tensor, sample_rate: int) -> None:
        """Offer ``waveform``, (N,) in [-1, 1] at ``sample_rate`` Hz, to be listened to."""


@dataclass(frozen=True)
class StepInfo:
    """What a module may want to know of the optimizer step that begins.

    Attributes:
        samples_seen: At the step's start.
        logged: Whether the step's values are logged: then, and only then, the module returns "through" in training.
        adversarial: Whether the discriminator takes part: then, and only then, it returns "exhibits" in training.
    """

    samples_seen: int
    logged: bool
    adversarial: bool


@dataclass
class Discriminator:
    """A second network, which learns to tell the model's pictures from real ones.

    Attributes:
        module: ``module(real, fake, weight)`` returns per-sample values, each (B,); "loss" is minimised, all are
            logged as "discriminator/NAME". ``module.generator_loss(fake)`` returns the model's term, (B,).
            :class:`mmldm_scale.trainables.adversarial_loss.AdversarialLoss` is such a module.
        config: When it begins to take part, how much its term counts, and how it learns.
    """

    module: nn.Module
    config: AdversarialConfig


@dataclass
class Trainable:
    """One kind of training.

    Attributes:
        name: The kind of its weights folders.
        module: ``module(batch)`` returns per-sample values, each (B,); "loss" is what is minimised, the others are
            logged under their names. Parameters that do not require gradients stay as they are. Besides these it may
            return, still attached to the graph,

            - "term/NAME", (B,): a term of the loss, not yet multiplied by its weight;
            - "exhibits", with a discriminator: {"real": (B, P, 3, S, S), "fake": likewise, "weight": (B,)}, pictures
              in [-1, 1] and how much each sample's adversarial loss counts;
            - "through": {NAME: tensors, each (B, …)}, where the gradient of each term is measured.
        dataset: The samples by global position.
        inputs: Fingerprints of what it learns from, by configuration key: a run is not carried on with others.
        flops_per_sample: Floating-point operations of one sample's forward pass (twice the MACs).
        write_weights: Called as ``write_weights(folder, state)`` with the averaged float32 ``state`` of ``module``
            (names as in ``module.state_dict()``), on the first rank, while training goes on: what else it reads must
            not change, nor may it read ``dataset``.
        preview: Called on every rank as ``preview(module, preview)`` at intervals; must be deterministic.
        samples: Called on the first rank as ``samples(state, preview)``, with the averaged ``state`` as above: an
            iterator that shows samples, a piece at a time, while the other ranks wait.
        validation: The held-out samples that the module is validated on, if there are any.
        quarantine: The samples found damaged; how many there are is logged.
        weights: How much each "term/NAME" counts in "loss", by NAME; logged.
        discriminator: What plays against the module, if anything does.
        begin_step: Called before each optimizer step.
        startup_messages: Lines that the user should read when a run begins.
    """

    name: Literal["kl_vae", "autoencoder", "dit"]
    module: nn.Module
    dataset: Dataset
    inputs: dict[str, str]
    flops_per_sample: float
    write_weights: Callable[[Path, dict[str, torch.Tensor]], None]
    preview: Callable[[nn.Module, Preview], None] | None = None
    samples: Callable[[dict[str, torch.Tensor], Preview], Iterator[None]] | None = None
    validation: ValidationSet | None = None
    quarantine: Quarantine | None = None
    weights: dict[str, float] = field(default_factory=dict)
    discriminator: Discriminator | None = None
    begin_step: Callable[[StepInfo], None] | None = None
    startup_messages: list[str] = field(default_factory=list)
