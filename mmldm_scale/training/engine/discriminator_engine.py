"""The discriminator's engine, which learns against the model beside it."""

from dataclasses import replace

from torch import Tensor

from mmldm_scale.config import TrainingConfig
from mmldm_scale.training.engine import deepspeed_engine
from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.engine.optimizer import learning_rate
from mmldm_scale.training.engine.step_guard import StepGuard
from mmldm_scale.training.step import DiscriminatorStep
from mmldm_scale.training.trainable import Discriminator, DiscriminatorInputs


class DiscriminatorEngine(DiscriminatorStep):
    """A trainable's discriminator with its engine.

    Batches, clipping, precision and the like are the model's. So is the ZeRO stage, but at most 2: the model's passes
    run through the discriminator's layers too, while ZeRO-3 gathers weights in the order that it recorded in the passes
    of the discriminator's own engine; and so small a network gains nothing from being split.

    Attributes:
        engine: trains the discriminator.
        guard: watches it; it skips every step that the model's guard skips.
        is_active: whether the discriminator takes part in this step.
    """

    def __init__(
        self, discriminator: Discriminator, training: TrainingConfig, world: World, model_guard: StepGuard
    ) -> None:
        self._config, self._training = discriminator.config, training
        settings = replace(
            training,
            learning_rate=discriminator.config.learning_rate,
            betas=discriminator.config.betas,
            zero_stage=min(training.zero_stage, 2),
        )
        self.engine = deepspeed_engine.build(discriminator.module, settings, world, averaged=False)
        super().__init__(self.engine.module, self.engine, self.engine.backward)
        self.guard = StepGuard(self.engine, follows=model_guard)
        self.is_active, self.weight = False, 0.0

    def begin_step(self, samples_seen: int) -> None:
        """Set what depends on the clock for the optimizer step that begins at ``samples_seen``.

        From its first sample on, the term's weight rises over ``adversarial.ramp`` samples, and the learning rate over
        ``training.warmup_samples``, like the model's.
        """
        config, training = self._config, self._training
        self.guard.begin_step()
        self.is_active = samples_seen >= config.after
        if not self.is_active:
            return
        seen = samples_seen + training.global_batch - config.after
        self.weight = config.weight * min(1.0, seen / config.ramp if config.ramp else 1.0)
        for group in deepspeed_engine.base_optimizer(self.engine).param_groups:
            group["lr"] = learning_rate(config.learning_rate, training.warmup_samples, seen)

    def learn(self, inputs: DiscriminatorInputs) -> dict[str, Tensor]:
        """Accumulate the gradient of a micro-batch, for :meth:`step`; return values to be logged, (B,) each."""
        values = super().learn(inputs)
        self.guard.watch(values["discriminator/loss"])
        return values

    def step(self) -> None:
        """Take the optimizer step, if the discriminator takes part."""
        if self.is_active:
            self.engine.step()

    def scalars(self) -> dict[str, float]:
        """Return what is to be logged of the last step by tag."""
        if not self.is_active:
            return {}
        (group, *_) = deepspeed_engine.base_optimizer(self.engine).param_groups
        norm = deepspeed_engine.gradient_norm(self.engine)
        scalars = {"discriminator/learning_rate": group["lr"]}
        return scalars if norm is None else scalars | {"discriminator/gradient_norm": norm}
