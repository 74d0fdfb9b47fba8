"""The discriminator in a training: a second engine, which learns against the model beside it.

The loop asks it for the model's adversarial term, and has it learn from the pictures that the model just made.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

from mmldm_scale.config import TrainingConfig
from mmldm_scale.training.engine import deepspeed_engine as engines
from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.engine.optimizer import learning_rate
from mmldm_scale.training.engine.step_guard import Guard
from mmldm_scale.training.trainable import Discriminator


class Adversary:
    """A trainable's discriminator with its engine.

    Batches, clipping, precision and the like are the model's. So is the ZeRO stage, but at most 2: the model's passes
    run through the discriminator's layers too, while ZeRO-3 gathers weights in the order that it recorded in the passes
    of the discriminator's own engine; and so small a network gains nothing from being split.

    Attributes:
        engine: Trains the discriminator.
        guard: Watches it.
        plays: Whether it takes part in this step.
        weight: Of the adversarial term in the model's loss of this step.
    """

    def __init__(self, discriminator: Discriminator, training: TrainingConfig, world: World) -> None:
        self._config, self._training = discriminator.config, training
        settings = replace(
            training,
            learning_rate=discriminator.config.learning_rate,
            betas=discriminator.config.betas,
            zero_stage=min(training.zero_stage, 2),
        )
        self.engine = engines.build(discriminator.module, settings, world, averaged=False)
        self.guard = Guard(self.engine)
        self.plays, self.weight = False, 0.0

    def begin_step(self, samples_seen: int) -> None:
        """Set what depends on the clock for the optimizer step that begins at ``samples_seen``.

        From its first sample on, the term's weight rises over ``adversarial.ramp`` samples, and its learning rate over
        ``training.warmup_samples``, like the model's.
        """
        config, training = self._config, self._training
        self.guard.begin_step()
        self.plays = samples_seen >= config.after
        if not self.plays:
            return
        seen = samples_seen + training.global_batch - config.after
        self.weight = config.weight * min(1.0, seen / config.ramp if config.ramp else 1.0)
        for group in engines.base_optimizer(self.engine).param_groups:
            group["lr"] = learning_rate(config.learning_rate, training.warmup_samples, seen)

    def term(self, fake: Tensor, weight: Tensor) -> Tensor:
        """Return the model's adversarial term, (B,), for its pictures ``fake`` and the samples' ``weight`` (B,).

        Its gradient reaches the pictures and not the discriminator, whose engine would take it for its own loss's.
        """
        with _frozen(self.engine.module):
            return weight * self.engine.module.generator_loss(fake)

    def learn(self, real: Tensor, fake: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Gather the gradient of a micro-batch, for ``engine.step()``; return values to be logged, each (B,)."""
        results = self.engine(real, fake, weight)
        self.guard.watch(results["loss"].detach())
        self.engine.backward(results["loss"].mean())
        return {f"discriminator/{name}": value.detach() for name, value in results.items()}

    def scalars(self) -> dict[str, float]:
        """Return what is to be logged of the step just done."""
        if not self.plays:
            return {}
        (group, *_) = engines.base_optimizer(self.engine).param_groups
        scalars = {"learning_rate": group["lr"], **engines.gradient_norm(self.engine)}
        return {f"discriminator/{name}": value for name, value in scalars.items()}


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
