"""One micro-batch, forward and backward: the loop takes it with DeepSpeed's engines, the planner on shapes alone.

take = MicroStep(engine, engine.backward, trainable.term_weights, discriminator)
values = take(batch)  # gradients are accumulated; values to be logged by tag
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from mmldm_scale.training.trainable import Batch, DiscriminatorInputs, StepOutput, weighted

ADVERSARIAL = "adversarial"  # name of the discriminator's term in the model's loss


@dataclass
class Step:
    """One optimizer step.

    Attributes:
        values: what is logged by tag: each micro-batch's per-sample values, still on the device.
        must_stop: whether a signal asked any process to stop.
        must_save: whether a checkpoint is due by the clock.
        must_show: whether a preview is due by the clock.
    """

    values: dict[str, list[Tensor]] = field(default_factory=dict)
    must_stop: bool = False
    must_save: bool = False
    must_show: bool = False


class Forward(Protocol):
    """A network, or an engine around one."""

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Return values by name, (B,) each."""


class DiscriminatorStep:
    """A discriminator's part in a micro-step.

    Attributes:
        weight: of the adversarial term in the model's loss.
    """

    def __init__(self, module: nn.Module, forward: Forward, backward: Callable[[Tensor], object]) -> None:
        """Take ``module`` (see :class:`Discriminator`); ``forward`` and ``backward`` are its own or its engine's."""
        self._module, self._forward, self._backward = module, forward, backward
        self._generator_loss: Callable[[Tensor], Tensor] = module.generator_loss  # type: ignore[assignment]  # a method
        self.weight = 1.0

    def term(self, inputs: DiscriminatorInputs) -> Tensor:
        """Return the model's adversarial term, (B,).

        Its gradient reaches the pictures and not the discriminator, whose engine would take it for its own loss's.
        """
        with _frozen(self._module):
            return self._generator_loss(inputs.fake)

    def learn(self, inputs: DiscriminatorInputs) -> dict[str, Tensor]:
        """Accumulate the discriminator's own gradient; return values to be logged by tag, (B,) each."""
        results = self._forward(inputs.real, inputs.fake)
        self._backward(results["loss"].mean())
        return {f"discriminator/{name}": value.detach() for name, value in results.items()}


class MicroStep:
    """Runs the module on a micro-batch, completes its loss, and goes back through it.

    Args:
        forward: returns the :class:`StepOutput` of a batch.
        backward: goes back from a scalar loss.
        term_weights: of the terms of the loss, by name; the adversarial term's weight is the discriminator's.
        discriminator: takes part where the output holds ``discriminator_inputs``.
        inner_backward: a context in which ``torch.autograd.grad`` may go back through the module before ``backward``.
    """

    def __init__(
        self,
        forward: Callable[[Batch], StepOutput],
        backward: Callable[[Tensor], object],
        term_weights: Mapping[str, float],
        discriminator: DiscriminatorStep | None = None,
        inner_backward: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._forward, self._backward, self._term_weights = forward, backward, term_weights
        self._discriminator, self._inner_backward = discriminator, inner_backward

    @property
    def term_weights(self) -> dict[str, float]:
        """The weight of each term in the loss."""
        adversarial = {ADVERSARIAL: self._discriminator.weight} if self._discriminator else {}
        return {**self._term_weights, **adversarial}

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Accumulate the gradients of ``batch``; return the values to be logged by tag, (B,) or (B, 2) each."""
        output = self._with_adversarial_term(self._forward(batch))
        values = output.logged() | weighted(output, self.term_weights) | self._gradient_norms(output)
        self._backward(output.loss.mean())
        inputs = output.discriminator_inputs
        if inputs is None or self._discriminator is None:
            return values
        shown = inputs.detached()
        del output, inputs  # the graph's memory is free for the discriminator's own pass
        return values | self._discriminator.learn(shown)

    def _with_adversarial_term(self, output: StepOutput) -> StepOutput:
        if output.discriminator_inputs is None or self._discriminator is None:
            return output
        term = self._discriminator.term(output.discriminator_inputs)  # (B,)
        return replace(
            output, loss=output.loss + self._discriminator.weight * term, terms={**output.terms, ADVERSARIAL: term}
        )

    def _gradient_norms(self, output: StepOutput) -> dict[str, Tensor]:
        """Return the norm of each sample's gradient, (B,), of each weighted term through each probe.

        This takes a backward pass, down to the probes, for each term.
        """
        norms = {}
        tensors = [tensor for probe in output.gradient_probes.values() for tensor in probe]
        weights = self.term_weights
        for name, term in output.terms.items() if tensors else ():
            with self._inner_backward():
                gradients = torch.autograd.grad(
                    term.sum(), tensors, retain_graph=True, allow_unused=True, materialize_grads=True
                )
            squares = iter([g.float().square().reshape(len(g), -1).sum(dim=1) for g in gradients])
            for probe, parts in output.gradient_probes.items():
                square = torch.stack([next(squares) for _ in parts]).sum(dim=0)  # (B,)
                norms[f"gradient_norm/{probe}/{name}"] = abs(weights[name]) * square.sqrt()
        return norms


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Build no graph towards the parameters of ``module``."""
    learning = [p for p in module.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
