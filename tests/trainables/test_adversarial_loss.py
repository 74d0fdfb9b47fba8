"""Adversarial training: both losses, who learns from what, and what is logged of each term."""

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


class Judge(nn.Module):
    """Judges three pictures, each pixel by its place, in as many patches as it has rows."""

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
@pytest.mark.parametrize("form", ["log", "hinge"])
def test_both_losses_are_those_of_equation_2(form: str, patches: int) -> None:
    """In float64, as printed, but minimised: D is the probability of being fake."""
    draw = generator(0, "pictures", 0).standard_normal
    real, fake = (torch.from_numpy(draw((2, 3, 3, 2, 2))) for _ in range(2))
    weight, judge = [0.5, 2.0], Judge(patches)
    loss = AdversarialLoss(judge, arrangements, form)
    learnt, played = loss(real, fake, torch.tensor(weight)), loss.generator_loss(fake)
    for sample in range(2):
        (a, i, j), (audio, first, second) = fake[sample], real[sample]
        expected = model = 0.0
        for row in judge.weight.detach():

            def score(*pictures: Tensor, row: Tensor = row) -> float:
                return (torch.stack(pictures).flatten() * row).sum().item()

            truth = score(audio, first, second)
            fakes = [score(a, i, j), score(a, i, second), score(a, first, j), score(a, j, i)]
            if form == "log":
                expected -= log(1 - being_fake(truth)) + sum(log(being_fake(made)) for made in fakes)
                model -= log(1 - being_fake(fakes[0]))
            else:
                expected += max(0, 1 - truth) + sum(max(0, 1 + made) for made in fakes)
                model -= fakes[0]
        assert learnt["loss"][sample].item() == pytest.approx(weight[sample] * expected / patches, rel=1e-5)
        assert played[sample].item() == pytest.approx(model / patches, rel=1e-5, abs=1e-6)


def being_fake(logit: float) -> float:
    """Return Eq. 2's D of a logit of being real."""
    return 1 / (1 + exp(logit))


def schema(run: Path, stage: int, **adversarial: Any) -> toy_trainable.ToyTraining:
    made = toy_trainable.ToyTraining(run=str(run))
    made.training.total_samples = STEPS * BATCH
    made.training.checkpoint_every = made.training.preview_every = STEPS * BATCH
    made.training.zero_stage = stage
    made.training.warmup_samples = WARMUP
    if stage == 3:  # else all of so small a network stays gathered
        made.training.deepspeed = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    for name, value in adversarial.items():
        setattr(made.adversarial, name, value)
    return made


@pytest.mark.parametrize(
    ("stage", "form", "after", "ramp"),
    [(0, "log", 32, 48), (1, "hinge", 32, 48), (2, "hinge", 0, 0), (3, "log", 32, 48)],
)
def test_both_learn_as_in_a_plain_loop_with_two_optimizers(
    tmp_path: Path, alone: World, restored_handlers: None, stage: int, form: str, after: int, ramp: int
) -> None:
    made = schema(tmp_path, stage, loss=form, after=after, ramp=ramp)
    torch.manual_seed(0)
    trainable = toy_trainable.build_trainable(made)
    expected = Plain(made, copy.deepcopy(trainable.module), copy.deepcopy(trainable.discriminator.module))
    trainer = Trainer(trainable, made.training, tmp_path, alone)
    trainer.run(StopRequest())
    log = Finished(tmp_path, 0, "").log()
    for step in range(STEPS):
        values = expected.step(step * BATCH)
        for name, value in values.items():
            assert log[step][name] == pytest.approx(value, rel=2e-4, abs=1e-7), (step, name)
    trained = {"module": (trainer.engine.module, expected.module)}
    trained["discriminator"] = trainer.adversary.engine.module, expected.discriminator
    for who, (found, wanted) in trained.items():
        for (name, parameter), value in zip(found.named_parameters(), wanted.parameters(), strict=True):
            if value.requires_grad:
                full = parameter if stage == 0 else safe_get_full_fp32_param(parameter)
                torch.testing.assert_close(full.detach(), value.detach(), rtol=1e-4, atol=1e-5, msg=f"{who} {name}")


def test_every_process_group_of_both_engines_has_the_time_out(tmp_path: Path, alone: World) -> None:
    made = schema(tmp_path, stage=1)
    made.training.collective_timeout = 19.0
    Trainer(toy_trainable.build_trainable(made), made.training, tmp_path, alone)
    groups = [group._get_backend(alone.device) for group in dist.distributed_c10d._world.pg_map]
    assert {group.options._timeout.total_seconds() for group in groups} == {19.0 + GRACE}


class Plain:
    """The same training in plain torch: no engine, no accumulation, one sample at a time where gradients are told."""

    def __init__(self, made: toy_trainable.ToyTraining, module: nn.Module, discriminator: nn.Module) -> None:
        self.made, self.module, self.discriminator = made, module, discriminator
        self.data = toy_trainable.ToyData(made)
        learning = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, betas=made.training.betas, weight_decay=0)
        adversarial = made.adversarial
        self.opponent = torch.optim.AdamW(discriminator.parameters(), betas=adversarial.betas, weight_decay=0)

    def step(self, samples_seen: int) -> dict[str, float]:
        """Take the step that begins at ``samples_seen``; return what is to be logged."""
        made, adversarial, end = self.made, self.made.adversarial, samples_seen + BATCH
        samples = [self.data[position] for position in range(samples_seen, end)]
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        playing, played = samples_seen >= adversarial.after, end - adversarial.after
        weight = adversarial.weight * min(1, played / max(adversarial.ramp, 1)) if playing else 0.0
        hidden, out = self._forward(batch)
        terms = self._terms(batch, hidden, out, playing)
        factors = toy_trainable.WEIGHTS | {"adversarial": weight}
        loss = sum(factors[name] * term for name, term in terms.items()).mean()
        values = {"loss": loss.item(), "weight/adversarial": weight, **self._gradients(batch, playing, factors)}
        values |= {f"term/{name}": term.mean().item() for name, term in terms.items()}
        self._learn(self.optimizer, loss, made.training.learning_rate * min(1, end / WARMUP))
        if playing:
            loss, rate = self._judgement(batch, out.detach()), adversarial.learning_rate * min(1, played / WARMUP)
            values |= {"discriminator/loss": loss.item(), "discriminator/learning_rate": rate}
            self._learn(self.opponent, loss, rate)
        return values

    def _forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        hidden = self.module.net[:2](self.module.frozen(batch["x"]))
        return hidden, 2 * self.module.net[2](hidden)

    def _terms(self, batch: dict[str, Tensor], hidden: Tensor, out: Tensor, playing: bool) -> dict[str, Tensor]:
        terms = {"mse": ((out - batch["y"]) ** 2).mean(1), "size": (hidden**2).mean(1)}
        if playing:
            logit = self.discriminator.network(out)
            played = -logit.sigmoid().log() if self.made.adversarial.loss == "log" else -logit
            terms["adversarial"] = self._counts(batch) * played
        return terms

    def _judgement(self, batch: dict[str, Tensor], out: Tensor) -> Tensor:
        half = toy_trainable.WIDTH // 2
        mixed, swapped = (
            torch.cat([out[:, :half], batch["y"][:, half:]], 1),
            torch.cat([out[:, half:], out[:, :half]], 1),
        )
        real, *fakes = map(self.discriminator.network, (batch["y"], out, mixed, swapped))
        if self.made.adversarial.loss == "log":
            each = -real.sigmoid().log() - sum((1 - fake.sigmoid()).log() for fake in fakes)
        else:
            each = (1 - real).clamp(min=0) + sum((1 + fake).clamp(min=0) for fake in fakes)
        return (self._counts(batch) * each).mean()

    def _counts(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.where(batch["x"][:, 0] > 0, 1.5, 0.5)

    def _gradients(self, batch: dict[str, Tensor], playing: bool, factors: dict[str, float]) -> dict[str, float]:
        """Return the mean norms of each sample's gradients, from each sample by itself."""
        totals: dict[str, float] = {}
        for row in range(BATCH):
            alone = {name: tensor[row : row + 1] for name, tensor in batch.items()}
            hidden, out = self._forward(alone)
            for name, term in self._terms(alone, hidden, out, playing).items():
                scaled = (factors[name] * term).sum()
                through = torch.autograd.grad(scaled, [hidden, out], retain_graph=True, allow_unused=True)
                norms = [0.0 if gradient is None else gradient.norm().item() for gradient in through]
                for place, norm in (("hidden", norms[0]), ("both", (norms[0] ** 2 + norms[1] ** 2) ** 0.5)):
                    key = f"gradient_norm/{place}/{name}"
                    totals[key] = totals.get(key, 0.0) + norm / BATCH
        return totals

    def _learn(self, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
        (group,) = optimizer.param_groups
        group["lr"] = rate
        for parameter, gradient in zip(group["params"], torch.autograd.grad(loss, group["params"]), strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(group["params"], self.made.training.gradient_clip)
        optimizer.step()
