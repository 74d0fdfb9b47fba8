"""A tiny task for the trainer's tests, and a program that trains it: ``torchrun … toy.py key=value …``."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from mmldm_scale import config
from mmldm_scale.config import TrainingConfig
from mmldm_scale.counter import generator
from mmldm_scale.errors import UserError
from mmldm_scale.models import pretrained
from mmldm_scale.training import loop
from mmldm_scale.training.quarantine import Quarantine
from mmldm_scale.training.task import Preview, Task

WIDTH = 16


@dataclass
class ToyTraining:
    run: str = "???"
    noise: float = 0.1
    bad_position: int = -1  # its target is NaN
    failing_position: int = -1  # reading it fails
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
            ema_halflife_samples=32,
            collective_timeout=20.0,
        )
    )


class ToyModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.net = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        dtype = self.net[0].weight.dtype
        out = self.net(self.frozen(batch["x"].to(dtype))) * self.scale
        error = (out.float() - batch["y"]).square().mean(1)  # (B, WIDTH) -> (B,)
        return {"loss": error, "loss/half": error / 2}


class ToyData:
    def __init__(self, schema: ToyTraining) -> None:
        self.schema = schema

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        if position == self.schema.failing_position:
            raise UserError(f"sample {position} cannot be read")
        random = generator(self.schema.training.seed, "toy", position)
        x = torch.from_numpy(random.standard_normal(WIDTH, dtype="float32"))
        y = x.flip(0) + self.schema.noise * torch.from_numpy(random.standard_normal(WIDTH, dtype="float32"))
        return {"x": x, "y": y * float("nan") if position == self.schema.bad_position else y}


def preview(module: nn.Module, writer: Preview) -> None:
    writer.image("weights", module.net[0].weight.float()[None].expand(3, -1, -1))


def build_task(schema: ToyTraining) -> Task:
    def write_weights(folder: Path, state: dict[str, Tensor]) -> None:
        pretrained.save(folder, "dit", {"width": WIDTH}, state)

    quarantine = Quarantine(Path(schema.run) / "quarantine", 0)
    flops = 6.0 * WIDTH * WIDTH
    return Task("dit", ToyModule(), ToyData(schema), {"noise": "none"}, flops, write_weights, preview, quarantine)


if __name__ == "__main__":
    try:
        sys.exit(loop.train(build_task, config.load(ToyTraining, [], sys.argv[1:])))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
