"""A tiny trainable for the trainer's tests, and a program that trains it: ``toy_trainable.py key=value …``."""

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from mmldm_scale import config
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.rng import generator
from mmldm_scale.config import AdversarialConfig, TrainingConfig
from mmldm_scale.models import pretrained
from mmldm_scale.runs.media_log import Preview
from mmldm_scale.trainables.adversarial_loss import AdversarialLoss
from mmldm_scale.training import loop
from mmldm_scale.training.data.quarantine import Quarantine
from mmldm_scale.training.engine.distributed import start, stop
from mmldm_scale.training.resilience.signals import StopRequest
from mmldm_scale.training.trainable import (
    Discriminator,
    DiscriminatorInputs,
    StepInfo,
    StepOutput,
    Trainable,
)

WIDTH = 16
WEIGHTS = {"mse": 1.0, "size": 0.01}


@dataclass
class ToyTraining:
    run: str = "???"
    restart: bool = False
    init: str | None = None
    weights: list[float] = field(default_factory=list)
    noise: float = 0.1
    fault: str = "loss"  # what is not finite ("loss", "gradient", "discriminator") or very high ("spike", "steep") …
    fault_at: list[int] = field(default_factory=list)  # … at these positions
    not_finite: str = "nan"  # what it is where it is not finite: nan, inf or -inf
    failing_position: int = -1  # reading it fails
    hang: str = ""  # how the rank that comes to position hang_at hangs ("sample", "forward", "frozen", "suspended")
    hang_at: int = -1
    stops: list[int] = field(default_factory=list)  # train twice: into run, and into run/pieces with these stops
    adversarial: AdversarialConfig = field(  # weight 0: no discriminator
        default_factory=lambda: AdversarialConfig(weight=0.2, after=48, ramp=64, learning_rate=1e-2)
    )
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            total_samples=160,
            global_batch=16,
            micro_batch=4,
            learning_rate=1e-2,
            precision="fp32",
            zero_stage=2,
            workers=0,
            log_every=16,
            checkpoint_every=64,
            preview_every=64,
            ema_lengths=[0.1, 0.2],
            collective_timeout=20.0,
        )
    )


def hang(schema: ToyTraining) -> None:
    if schema.hang == "sample":
        time.sleep(3600)
    if schema.hang == "suspended":  # for longer than a hung rank would be waited for
        time.sleep(2)
        seconds = schema.training.collective_timeout + 3
        subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
    if schema.hang in ("frozen", "suspended"):
        os.kill(os.getpid(), signal.SIGSTOP)
    if schema.hang == "suspended":
        time.sleep(1)  # slow, but not hung


class ScaleGradient(torch.autograd.Function):
    """Hands a tensor on, and its gradient multiplied by ``factors``."""

    @staticmethod
    def forward(context, tensor: Tensor, factors: Tensor) -> Tensor:
        context.save_for_backward(factors)
        return tensor.clone()

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.saved_tensors[0], None


class ToyModule(nn.Module):
    def __init__(self, fault: str = "", not_finite: float = float("nan")) -> None:
        super().__init__()
        self.fault, self.not_finite = fault, not_finite
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.net = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.register_buffer("scale", torch.tensor(2.0))
        self.step = StepInfo()

    def begin_step(self, step: StepInfo) -> None:
        self.step = step

    def forward(self, batch: dict[str, Tensor]) -> StepOutput:
        if "asleep" in batch and batch["asleep"].any():
            time.sleep(3600)
        dtype = self.net[0].weight.dtype
        hidden = self.net[1](self.net[0](self.frozen(batch["x"].to(dtype))))
        out = (self.net[2](hidden) * self.scale).float()
        real, faulty = batch["y"], batch["faulty"][:, None]
        y = real.masked_fill(faulty, self.not_finite) if self.fault == "loss" else real
        if self.fault == "spike":
            y = torch.where(faulty, 1000 * real, real)
        if self.fault in ("gradient", "steep"):
            worst = 1000.0 if self.fault == "steep" else self.not_finite
            out = ScaleGradient.apply(out, torch.where(faulty, worst, 1.0))
        if self.fault == "discriminator":
            real = real.masked_fill(faulty, self.not_finite)
        terms = {"mse": (out - y).square().mean(1), "size": hidden.float().square().mean(1)}  # (B, n) -> (B,)
        loss = sum(WEIGHTS[name] * term for name, term in terms.items())
        output = StepOutput(loss, terms, {"loss/half": loss / 2})
        if self.training and self.step.adversarial:
            output.discriminator_inputs = DiscriminatorInputs(*(x.unflatten(1, (2, -1)) for x in (real, out)))
        if self.training and self.step.logged:
            output.gradient_probes = {"hidden": (hidden,), "both": (hidden, out)}
        return output


class ToyDiscriminator(nn.Module):
    """Two halves of a vector, (B, 2, WIDTH / 2), in the place of two pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, WIDTH), nn.LeakyReLU(0.2), nn.Linear(WIDTH, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.net(pictures).squeeze(1)


def arrangements(real: Tensor, fake: Tensor) -> list[Tensor]:
    return [fake, torch.stack([fake[:, 0], real[:, 1]], dim=1), fake.flip(1)]


class ToyData:
    def __init__(self, schema: ToyTraining) -> None:
        self.schema = schema

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        if position == self.schema.failing_position:
            raise UserError(f"sample {position} cannot be read")
        if position == self.schema.hang_at:
            hang(self.schema)
        random = generator(self.schema.training.seed, "toy", position)
        x = torch.from_numpy(random.standard_normal(WIDTH, dtype="float32"))
        y = x.flip(0) + self.schema.noise * torch.from_numpy(random.standard_normal(WIDTH, dtype="float32"))
        item = {"x": x, "y": y, "faulty": torch.tensor(position in self.schema.fault_at)}
        if self.schema.hang == "forward":
            item["asleep"] = torch.tensor(position == self.schema.hang_at)
        return item


def preview(module: nn.Module, writer: Preview) -> None:
    columns = torch.eye(WIDTH, dtype=module.net[0].weight.dtype)
    writer.image("network", module.net(columns).float()[None].expand(3, -1, -1))


def samples(state: dict[str, Tensor], writer: Preview) -> Iterator[None]:
    for name in ("net.0.weight", "net.2.weight"):
        writer.image(f"averages/{name}", state[name][None].expand(3, -1, -1))
        yield


def build_trainable(schema: ToyTraining) -> Trainable:
    def write_weights(folder: Path, state: dict[str, Tensor]) -> None:
        pretrained.save(folder, "dit", {"width": WIDTH}, state)

    module, adversarial, discriminator = ToyModule(schema.fault, float(schema.not_finite)), schema.adversarial, None
    if adversarial.weight:
        discriminator = Discriminator(AdversarialLoss(ToyDiscriminator(), arrangements, adversarial.loss), adversarial)
    return Trainable(
        name="dit",
        module=module,
        dataset=ToyData(schema),
        inputs={"noise": "none"},
        shard_sets=[{"name": "toys", "samples": 1000, "fingerprint": "0123456789abcdef"}],
        flops_per_sample=6.0 * WIDTH * WIDTH,
        write_weights=write_weights,
        preview=preview,
        samples=samples,
        quarantine=Quarantine(Path(schema.run) / "quarantine", 0),
        term_weights=WEIGHTS,
        discriminator=discriminator,
        begin_step=module.begin_step,
    )


def train_twice(schema: ToyTraining) -> int:
    """Train to the end, and once more in pieces, each of which resumes from the run folder of the previous one."""
    world, stop_request, run, total = start(20.0), StopRequest(), Path(schema.run), schema.training.total_samples
    for folder, until in [(run, total), *((run / "pieces", until) for until in (*schema.stops, total))]:
        piece = copy.deepcopy(schema)
        piece.training.total_samples = until
        torch.manual_seed(schema.training.seed)
        folder.mkdir(parents=True, exist_ok=True)
        loop.Trainer(build_trainable(piece), piece.training, folder, world).run(stop_request)
    stop()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(loop.train(build_trainable, config.load(ToyTraining, [], sys.argv[1:])))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
