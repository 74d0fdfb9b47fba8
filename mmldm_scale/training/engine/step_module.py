"""What a model's engine minimises: its trainable's loss, and with a discriminator the adversarial term as well.

An :class:`Objective` stands between a trainable's module and its engine. It also measures, on logged steps, how
strongly each term of the loss pulls at the latents.
"""

import torch
from torch import Tensor, nn

from mmldm_scale.training.engine.deepspeed_engine import uncounted_backward
from mmldm_scale.training.engine.discriminator_engine import Adversary
from mmldm_scale.training.trainable import StepInfo, Trainable

TERM = "term/"
ADVERSARIAL = "adversarial"


class Objective:
    """Completes what ``trainable.module`` returns in training; make it before the module's engine.

    It is a forward hook that runs before DeepSpeed's, since what those hand on is of no use here: ZeRO-3 returns copies
    of a module's outputs, which the loss does not depend on, and a gradient that goes through an engine's outputs
    begins the engine's backward pass.

    Attributes:
        weights: How much each term counts in this step, by name.
    """

    def __init__(self, trainable: Trainable, adversary: Adversary | None) -> None:
        self._begin, self._adversary = trainable.begin_step, adversary
        self.weights = dict(trainable.weights)
        trainable.module.register_forward_hook(self._complete)

    def begin_step(self, samples_seen: int, logged: bool) -> None:
        """Prepare for the optimizer step that begins at ``samples_seen``."""
        if self._adversary:
            self._adversary.begin_step(samples_seen)
            self.weights[ADVERSARIAL] = self._adversary.weight
        if self._begin:
            self._begin(StepInfo(samples_seen, logged, adversarial=bool(self._adversary and self._adversary.plays)))

    def _complete(self, module: nn.Module, _: tuple, results: dict) -> dict | None:
        """Return "loss" with its gradient, and without theirs "exhibits" and all that is to be logged, each (B,)."""
        if not torch.is_grad_enabled():
            return None  # a preview, or validation
        values = {name: value for name, value in results.items() if name not in ("exhibits", "through")}
        exhibits = results.get("exhibits")
        if exhibits:
            values[TERM + ADVERSARIAL] = self._adversary.term(exhibits["fake"], exhibits["weight"])
            values["loss"] = values["loss"] + self.weights[ADVERSARIAL] * values[TERM + ADVERSARIAL]
        norms = self._gradient_norms(module, values, results["through"]) if "through" in results else {}
        completed = {name: value.detach() for name, value in (values | norms).items()} | {"loss": values["loss"]}
        if exhibits:
            completed["exhibits"] = {name: value.detach() for name, value in exhibits.items()}
        return completed

    def _gradient_norms(self, module: nn.Module, values: dict, through: dict) -> dict[str, Tensor]:
        """Return the norm of each sample's gradient, (B,), of each weighted term through each entry of ``through``.

        This takes a backward pass, down to those tensors, for each term.
        """
        norms = {}
        tensors = [tensor for entry in through.values() for tensor in entry]
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        for name in [key.removeprefix(TERM) for key in values if key.startswith(TERM)]:
            with uncounted_backward(module):
                gradients = torch.autograd.grad(values[TERM + name].sum(), tensors, **options)
            squares = iter([gradient.float().square().flatten(1).sum(dim=1) for gradient in gradients])
            for place, entry in through.items():
                square = sum(next(squares) for _ in entry)  # (B,)
                norms[f"gradient_norm/{place}/{name}"] = abs(self.weights[name]) * square.sqrt()
        return norms
