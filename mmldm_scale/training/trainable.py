"""The contract between the training loop and what it trains.

A trainable is a folder of :mod:`mmldm_scale.trainables` whose ``build_trainable(config)`` returns a :class:`Trainable`:
a module, its data, and how its weights and previews are written. Its module returns a :class:`StepOutput` for each
micro-batch. :func:`mmldm_scale.training.loop.train` knows nothing else of a model.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import default_collate

from mmldm_scale.config import AdversarialConfig
from mmldm_scale.runs.media_log import Preview

Batch = dict[str, Tensor]


@dataclass
class DiscriminatorInputs:
    """Pictures of B samples for the discriminator, P of each, in [-1, 1].

    Attributes:
        real: (B, P, 3, S, S).
        fake: (B, P, 3, S, S), the model's reconstructions, attached to its graph.
    """

    real: Tensor
    fake: Tensor

    def detached(self) -> "DiscriminatorInputs":
        """Return the same pictures without their graph."""
        return DiscriminatorInputs(self.real.detach(), self.fake.detach())


@dataclass
class StepOutput:
    """What a trainable's module returns for a micro-batch of B samples.

    It is a dataclass and not a dictionary because DeepSpeed looks for tensors in dictionaries and tuples: ZeRO-3 would
    replace them by copies that the loss does not depend on.

    Attributes:
        loss: (B,) float32, what is minimised; all ``terms`` are in it.
        terms: terms of the loss by name, (B,) each, before they are multiplied by ``Trainable.term_weights``; logged
            as "term/NAME".
        metrics: other values to be logged, by tag: (B,), or (B, 2) by :func:`monitoring.metric_means.where`.
        discriminator_inputs: on steps in which the discriminator takes part.
        gradient_probes: on logged steps, tensors by name, each (B, …), through which the norm of every term's gradient
            is measured; logged as "gradient_norm/PROBE/TERM".
    """

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    discriminator_inputs: DiscriminatorInputs | None = None
    gradient_probes: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def logged(self) -> dict[str, Tensor]:
        """Return the values to be logged by tag, without their graphs."""
        values = {"loss": self.loss, **{f"term/{name}": term for name, term in self.terms.items()}, **self.metrics}
        return {tag: value.detach() for tag, value in values.items()}


def weighted(output: StepOutput, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Return the terms of ``output`` times their ``weights``, by tag: these add up to the loss, or to a part of it."""
    known = {name: term.detach() for name, term in output.terms.items() if name in weights}
    return {f"weighted/{name}": weights[name] * term for name, term in known.items()}


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the sum of weight · term over ``weights``, (B,); each of ``terms`` is (B,)."""
    return reduce(operator.add, (weight * terms[name] for name, weight in weights.items()))


@dataclass(frozen=True)
class StepInfo:
    """The optimizer step that begins.

    Attributes:
        samples_seen: at its start.
        logged: whether its values are logged; then the module returns ``gradient_probes``.
        adversarial: whether the discriminator takes part; then the module returns ``discriminator_inputs``.
    """

    samples_seen: int = 0
    logged: bool = False
    adversarial: bool = False


class Dataset(Protocol):
    """The endless training samples of a run by global position; a class may have ``__getitems__`` as well."""

    def __getitem__(self, position: int) -> Batch:
        """Return the sample at ``position``, without a batch dimension: a pure function of (seed, position)."""


class ValidationSet(Protocol):
    """Samples that are not trained on, by index from 0 on."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        """Return the samples ``indices``, each without a batch dimension: a pure function of its index."""


@dataclass
class Discriminator:
    """A second network, which learns to tell the model's pictures from real ones.

    Attributes:
        module: ``module(real, fake)`` returns (B,) values by name: "loss" is minimised, all are logged as
            "discriminator/NAME". ``module.generator_loss(fake)`` returns the model's term, (B,). No sample's values
            may depend on the others'. See :class:`mmldm_scale.trainables.adversarial_loss.AdversarialLoss`.
        config: when it takes part, the weight of its term, and its optimizer.
    """

    module: nn.Module
    config: AdversarialConfig


@dataclass
class StepOutline:
    """One micro-step of a trainable on the device "meta", which the planner runs (:mod:`mmldm_scale.planning`).

    Attributes:
        module: as in :class:`Trainable`.
        batch: a micro-batch for it, made by the trainable's own dataset; see :func:`repeat_sample`.
        count_flops: returns ``flops_per_sample`` of :class:`Trainable`. Counting may take seconds.
        term_weights: as in :class:`Trainable`.
        begin_step: as in :class:`Trainable`.
        discriminator: the module of :class:`Discriminator`, if there is one.
        frozen: networks that no engine holds, in their own precision.
        info: the step that takes most memory.
        samples_together: the micro-batches of all processes together must be a multiple of this number of samples.
        transformer_width: of the transformer in which most of the arithmetic is done; None: it is done in convolutions.
    """

    module: nn.Module
    batch: Batch
    count_flops: Callable[[], float]
    term_weights: dict[str, float] = field(default_factory=dict)
    begin_step: Callable[[StepInfo], None] | None = None
    discriminator: nn.Module | None = None
    frozen: nn.Module | None = None
    info: StepInfo = field(default_factory=lambda: StepInfo(logged=True))
    samples_together: int = 1
    transformer_width: int | None = None


def repeat_sample(sample: Batch, count: int, device: str = "meta") -> Batch:
    """Return a micro-batch of ``count`` times ``sample`` on ``device``; on "meta" it takes no memory."""
    return default_collate([{name: tensor.to(device) for name, tensor in sample.items()}] * count)


def _no_differences(config: dict[str, Any]) -> list[str]:
    return []


@dataclass(frozen=True)
class WeightsLayout:
    """How a weights folder holds the tensors of a trainable's module; ``init=`` reads one by it.

    Attributes:
        prefix: what the names of the folder's tensors begin with in ``Trainable.module``.
        file: the file of the tensors, in the folder.
        other_parts: what the names of tensors in the file begin with that the module lacks by design.
        classes: the names of this model's classes, if it has any. The folder's config.json has those of its own.
        class_tensors: a pattern of the names, in the file, of tensors with one row for each class; rows behind those
            of the classes belong to none. Rows are matched by the class's name.
        differences: ``differences(config)`` returns parts of a line that say what is otherwise than in this training,
            by the folder's config.json.
    """

    prefix: str = ""
    file: str = "model.safetensors"
    other_parts: tuple[str, ...] = ()
    classes: Sequence[str] = ()
    class_tensors: str = ""
    differences: Callable[[dict[str, Any]], list[str]] = _no_differences


@dataclass(frozen=True)
class PretrainedPart:
    """A part that may begin with given weights, for the lines that a training prints at its start.

    Attributes:
        name: of the part.
        key: of the configuration, which names its weights.
        source: value of ``key``; empty: the part begins at random.
        advice: what to give instead, and why, where the part begins at random.
        is_frozen: whether the part is not trained; then no checkpoint has it.
    """

    name: str
    key: str
    source: str
    advice: str = ""
    is_frozen: bool = False


@dataclass
class Trainable:
    """What is trained, and everything that the loop needs of it.

    Attributes:
        name: of its record in :mod:`mmldm_scale.trainables.registry`.
        module: ``module(batch)`` returns a :class:`StepOutput`. Its parameters belong to sub-modules, since ZeRO-3
            gathers a module's own ones by the tensors in its output. Parameters that require no gradient stay as they
            are. In validation (eval mode) neither probes nor discriminator inputs are returned.
        dataset: the training samples by global position.
        inputs: fingerprints of what it learns from, by configuration key; a run is not resumed with others.
        shard_sets: the shard sets among them: {"name", "samples", "fingerprint"} each, for the weights' provenance.
        flops_per_sample: floating-point operations of one sample's forward pass (twice the MACs).
        write_weights: ``write_weights(folder, state)`` writes the averaged float32 ``state`` of ``module`` (names as in
            ``module.state_dict()``). It runs on rank 0, in another thread, while training goes on, so that it may read
            neither ``dataset`` nor anything that changes.
        weights_layout: how such a folder, whose kind is ``name``, is read by ``init=``.
        term_weights: how much each of ``StepOutput.terms`` counts in the loss; logged as "weight/NAME".
        begin_step: called before each optimizer step.
        preview: ``preview(module, writer)``, called on all ranks at intervals; must be deterministic.
        samples: ``samples(state, writer)``, called on rank 0 with the averaged ``state``: an iterator that shows one
            sample after another while the other ranks wait.
        validation: the held-out samples, if there are any.
        quarantine: the samples found damaged; their number is logged.
        discriminator: a second network that learns against the module.
        startup_messages: lines for the user, printed when a run starts.
        sets: numbers of training samples by shard set; empty: not known.
        pretrained: parts that may begin with given weights; those that the paper takes pretrained, in any case.
    """

    name: str
    module: nn.Module
    dataset: Dataset
    inputs: dict[str, str]
    flops_per_sample: float
    write_weights: Callable[[Path, dict[str, Tensor]], None]
    shard_sets: list[dict[str, Any]] = field(default_factory=list)
    weights_layout: WeightsLayout = WeightsLayout()
    term_weights: dict[str, float] = field(default_factory=dict)
    begin_step: Callable[[StepInfo], None] | None = None
    preview: Callable[[nn.Module, Preview], None] | None = None
    samples: Callable[[dict[str, Tensor], Preview], Iterator[None]] | None = None
    validation: ValidationSet | None = None
    quarantine: Sized | None = None
    discriminator: Discriminator | None = None
    startup_messages: list[str] = field(default_factory=list)
    sets: dict[str, int] = field(default_factory=dict)
    pretrained: list[PretrainedPart] = field(default_factory=list)
