"""Adversarial training: the losses of model and discriminator, their training steps and the logged values."""

import copy
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

from mmldm_scale.common.rng import generator
from mmldm_scale.trainables.adversarial_loss import AdversarialLoss
from mmldm_scale.training.engine.distributed import GRACE, World
from mmldm_scale.training.loop import Trainer
from mmldm_scale.training.resilience.signals import StopRequest
from tests.support import toy_trainable
from tests.support.run_results import Finished

STEPS, BATCH, WARMUP = 5, 16, 48


class LinearDiscriminator(nn.Module):
    """Logits of three pictures, a weighted sum of all pixels for each patch."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        draw = torch.from_numpy(generator(0, "judge", patches).standard_normal((patches, 3 * 3 * 2 * 2)))
        self.weight = nn.Parameter(draw)

    def forward(self, pictures: Tensor) -> Tensor:
        return (pictures.flatten(1) @ self.weight.T).squeeze(1)  # (N, patches), or (N,)


def arrangements(real: Tensor, fake: Tensor) -> list[Tensor]:
    """The four of Eq. 2, of ⟨audio image, frame i, frame j⟩."""
    (a, i, j), (_, real_i, real_j) = fake.unbind(1), real.unbind(1)
    return [torch.stack(parts, dim=1) for parts in ((a, i, j), (a, i, real_j), (a, real_i, j), (a, j, i))]


@pytest.mark.parametrize("patches", [1, 3])
@pytest.mark.parametrize("form", ["log", "hinge", "hinge_linear"])
def test_both_losses_are_those_of_equation_2_or_their_hinge_forms(form: str, patches: int) -> None:
    """In float64; Eq. 2 as printed, but minimised: D is the probability of being fake."""
    draw = generator(0, "pictures", 0).standard_normal
    real, fake = (torch.from_numpy(draw((2, 3, 3, 2, 2))) for _ in range(2))
    network = LinearDiscriminator(patches)
    loss = AdversarialLoss(network, arrangements, form)
    values, generator_losses = loss(real, fake), loss.generator_loss(fake)
    for sample in range(2):
        (a, i, j), (audio, first, second) = fake[sample], real[sample]
        expected = model = right = 0.0
        for row in network.weight.detach():

            def score(*pictures: Tensor, row: Tensor = row) -> float:
                return (torch.stack(pictures).flatten() * row).sum().item()

            truth = score(audio, first, second)
            fakes = [score(a, i, j), score(a, i, second), score(a, first, j), score(a, j, i)]
            if form == "log":
                expected -= log(1 - being_fake(truth)) + sum(log(being_fake(logit)) for logit in fakes)
                model -= log(1 - being_fake(fakes[0]))
            else:
                hinges = [max(0, 1 - truth), *(max(0, 1 + logit) for logit in fakes)]
                expected += sum(hinges) / 5 if form == "hinge" else sum(hinges)
                model += max(0, 1 - fakes[0]) if form == "hinge" else -fakes[0]
            even = -log(4) if form == "log" else -1
            right += ((truth > even) + (fakes[0] < even)) / 2
        assert values["loss"][sample].item() == pytest.approx(expected / patches, rel=1e-5)
        assert values["accuracy"][sample].item() == pytest.approx(right / patches)
        assert generator_losses[sample].item() == pytest.approx(model / patches, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("form", ["log", "hinge", "hinge_linear"])
@pytest.mark.parametrize("fakes", [1, 4])
def test_the_accuracy_is_a_half_beside_the_best_logit_for_equal_pictures_and_one_if_they_lie_apart(
    form: str, fakes: int
) -> None:
    """With four fakes for each real picture that logit is negative, so that signs would call everything fake."""

    class Shown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, pictures: Tensor) -> Tensor:
            return self.scale * pictures[:, 0, 0, 0, 0]

    loss = AdversarialLoss(Shown(), lambda real, fake: [fake] * fakes, form)
    logits = torch.linspace(-4, 4, 8001)  # all pictures alike, at each logit
    pictures = logits[:, None, None, None, None].expand(-1, 3, 3, 1, 1)
    values = loss(pictures, pictures)
    best = logits[values["loss"] <= values["loss"].min() + 1e-4].mean()
    assert values["accuracy"].eq(0.5).float().mean() > 0.99
    apart = loss(pictures[:1] * 0 + best + 0.1, pictures[:1] * 0 + best - 0.1)
    assert apart["accuracy"].item() == 1


def being_fake(logit: float) -> float:
    """Return Eq. 2's D of a logit of being real."""
    return 1 / (1 + exp(logit))


def configure(run: Path, stage: int, **adversarial: Any) -> toy_trainable.ToyTraining:
    """Return the configuration of five steps of the toy; ``adversarial`` changes its adversarial settings."""
    config = toy_trainable.ToyTraining(run=str(run))
    config.training.total_samples = STEPS * BATCH
    config.training.checkpoint_every = config.training.preview_every = STEPS * BATCH
    config.training.zero_stage = stage
    config.training.warmup_samples = WARMUP
    if stage == 3:  # otherwise the parameters of such a small network stay gathered
        config.training.deepspeed = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    for name, value in adversarial.items():
        setattr(config.adversarial, name, value)
    return config


@pytest.mark.parametrize(
    ("stage", "form", "after", "ramp"),
    [(0, "log", 32, 48), (1, "hinge", 32, 48), (2, "hinge_linear", 0, 0), (3, "log", 32, 48)],
)
def test_both_learn_as_in_a_plain_loop_with_two_optimizers(
    tmp_path: Path, alone: World, restored_handlers: None, stage: int, form: str, after: int, ramp: int
) -> None:
    config = configure(tmp_path, stage, loss=form, after=after, ramp=ramp)
    torch.manual_seed(0)
    trainable = toy_trainable.build_trainable(config)
    expected = PlainLoop(config, copy.deepcopy(trainable.module), copy.deepcopy(trainable.discriminator.module))
    trainer = Trainer(trainable, config.training, tmp_path, alone)
    trainer.run(StopRequest())
    records = Finished(tmp_path, 0, "").log()
    for step in range(STEPS):
        values = expected.step(step * BATCH)
        for name, value in values.items():
            assert records[step][name] == pytest.approx(value, rel=2e-4, abs=1e-7), (step, name)
    networks = {"module": (trainer.engine.module, expected.module)}
    networks["discriminator"] = trainer.discriminator.engine.module, expected.discriminator
    for network, (trained, plain) in networks.items():
        for (name, parameter), value in zip(trained.named_parameters(), plain.parameters(), strict=True):
            if value.requires_grad:
                full = parameter if stage == 0 else safe_get_full_fp32_param(parameter)
                torch.testing.assert_close(full.detach(), value.detach(), rtol=1e-4, atol=1e-5, msg=f"{network} {name}")


def test_every_process_group_of_both_engines_has_the_timeout(tmp_path: Path, alone: World) -> None:
    config = configure(tmp_path, stage=1)
    config.training.collective_timeout = 19.0
    Trainer(toy_trainable.build_trainable(config), config.training, tmp_path, alone)
    groups = [group._get_backend(alone.device) for group in dist.distributed_c10d._world.pg_map]
    assert {group.options._timeout.total_seconds() for group in groups} == {19.0 + GRACE}


class PlainLoop:
    """The same training in plain torch: no engine, no accumulation, gradient norms from one sample at a time."""

    def __init__(self, config: toy_trainable.ToyTraining, module: nn.Module, discriminator: nn.Module) -> None:
        self.config, self.module, self.discriminator = config, module, discriminator
        self.data = toy_trainable.ToyData(config)
        trained = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, betas=config.training.betas, weight_decay=0)
        adversarial = config.adversarial
        self.discriminator_optimizer = torch.optim.AdamW(
            discriminator.parameters(), betas=adversarial.betas, weight_decay=0
        )

    def step(self, samples_seen: int) -> dict[str, float]:
        """Take the step that begins at ``samples_seen``; return the values that a run logs."""
        config, adversarial, end = self.config, self.config.adversarial, samples_seen + BATCH
        samples = [self.data[position] for position in range(samples_seen, end)]
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        active, seen = samples_seen >= adversarial.after, end - adversarial.after
        weight = adversarial.weight * min(1, seen / max(adversarial.ramp, 1)) if active else 0.0
        hidden, out = self._forward(batch)
        terms = self._terms(batch, hidden, out, active)
        factors = toy_trainable.WEIGHTS | {"adversarial": weight}
        loss = sum(factors[name] * term for name, term in terms.items()).mean()
        values = {"loss": loss.item(), "weight/adversarial": weight, **self._gradients(batch, active, factors)}
        values |= {f"term/{name}": term.mean().item() for name, term in terms.items()}
        self._learn(self.optimizer, loss, config.training.learning_rate * min(1, end / WARMUP))
        if active:
            loss = self._discriminator_loss(batch, out.detach())
            rate = adversarial.learning_rate * min(1, seen / WARMUP)
            values |= {"discriminator/loss": loss.item(), "discriminator/learning_rate": rate}
            self._learn(self.discriminator_optimizer, loss, rate)
        return values

    def _forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        hidden = self.module.net[:2](self.module.frozen(batch["x"]))
        return hidden, 2 * self.module.net[2](hidden)

    def _terms(self, batch: dict[str, Tensor], hidden: Tensor, out: Tensor, active: bool) -> dict[str, Tensor]:
        terms = {"mse": ((out - batch["y"]) ** 2).mean(1), "size": (hidden**2).mean(1)}
        if active:
            logit = self.discriminator.network(out)
            forms = {"log": -logit.sigmoid().log(), "hinge": (1 - logit).clamp(min=0), "hinge_linear": -logit}
            terms["adversarial"] = forms[self.config.adversarial.loss]
        return terms

    def _discriminator_loss(self, batch: dict[str, Tensor], out: Tensor) -> Tensor:
        half = toy_trainable.WIDTH // 2
        mixed, swapped = (
            torch.cat([out[:, :half], batch["y"][:, half:]], 1),
            torch.cat([out[:, half:], out[:, :half]], 1),
        )
        real, *fakes = map(self.discriminator.network, (batch["y"], out, mixed, swapped))
        if self.config.adversarial.loss == "log":
            losses = -real.sigmoid().log() - sum((1 - fake.sigmoid()).log() for fake in fakes)
        else:
            losses = (1 - real).clamp(min=0) + sum((1 + fake).clamp(min=0) for fake in fakes)
        return losses.mean() / (4 if self.config.adversarial.loss == "hinge" else 1)

    def _gradients(self, batch: dict[str, Tensor], active: bool, factors: dict[str, float]) -> dict[str, float]:
        """Return the mean over samples of the norms of each term's gradients, one sample at a time."""
        totals: dict[str, float] = {}
        for row in range(BATCH):
            sample = {name: tensor[row : row + 1] for name, tensor in batch.items()}
            hidden, out = self._forward(sample)
            for name, term in self._terms(sample, hidden, out, active).items():
                scaled = (factors[name] * term).sum()
                gradients = torch.autograd.grad(scaled, [hidden, out], retain_graph=True, allow_unused=True)
                norms = [0.0 if gradient is None else gradient.norm().item() for gradient in gradients]
                for probe, norm in (("hidden", norms[0]), ("both", (norms[0] ** 2 + norms[1] ** 2) ** 0.5)):
                    key = f"gradient_norm/{probe}/{name}"
                    totals[key] = totals.get(key, 0.0) + norm / BATCH
        return totals

    def _learn(self, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
        (group,) = optimizer.param_groups
        group["lr"] = rate
        for parameter, gradient in zip(group["params"], torch.autograd.grad(loss, group["params"]), strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(group["params"], self.config.training.gradient_clip)
        optimizer.step()
