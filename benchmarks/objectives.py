"""Benchmark of the DiT's objectives: cost of a step and losses before and after training, on the same latents.

    python -m benchmarks.objectives --shards demo/corpus/latents --output benchmarks/results/objectives_MACHINE.json

Every objective trains configs/dit/demo.yaml anew with the same seed, in this process. Its losses before and after are
those of the same batch, whose noise and timesteps no training step had. Between objectives they are not to be compared
where what is predicted, or the distribution of timesteps, differs. What is sampled at the end should have the mean, 0,
and the standard deviation, 1, of normalised latents.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from benchmarks.report import machine, publish
from mmldm_scale.config import load
from mmldm_scale.diffusion.guided_sampling import Latents, sample_latents
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.trainable import build_trainable
from mmldm_scale.training.trainable import Trainable

OBJECTIVES = {
    "epsilon": [],
    "epsilon, min-SNR": ["diffusion.min_snr=5"],
    "v": ["diffusion.prediction=v"],
    "v, min-SNR": ["diffusion.prediction=v", "diffusion.min_snr=5"],
    "v, zero terminal SNR": ["diffusion.prediction=v", "diffusion.zero_terminal_snr=true"],
    "flow": ["diffusion.prediction=flow"],
    "flow, logit-normal": ["diffusion.prediction=flow", "diffusion.time_distribution=logit_normal"],
    "epsilon, contrastive": ["contrastive.weight=0.05"],
}
DEMO = Path(__file__).parents[1] / "configs/dit/demo.yaml"
LEARNING_RATE, WARMUP = 1e-3, 20  # steps
COMPARED = 128  # samples of the batch before and after
SAMPLED, SAMPLING_STEPS = 32, 50


def main() -> int:
    """Train, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True, help="a set of latents")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    objectives: dict[str, object] = {}
    for name, settings in OBJECTIVES.items():
        objectives[name] = learn(args.shards, settings, args.steps)
        print(f"{name}: {objectives[name]}", file=sys.stderr)
    publish({"machine": machine("torch", "diffusers"), "steps": args.steps, "objectives": objectives}, args.output)
    return 0


def learn(shards: str, settings: list[str], steps: int) -> dict[str, object]:
    """Train by ``settings`` for so many ``steps``; return losses before and after, and what came of it."""
    config = load(DiTTraining, [DEMO], [f"shards={shards}", *settings])
    torch.manual_seed(0)
    trainable, batch = build_trainable(config), config.training.global_batch
    compared = positions(trainable, steps * batch, COMPARED)
    before, began = losses(trainable, compared), time.process_time()
    optimizer = torch.optim.AdamW(trainable.module.parameters(), lr=LEARNING_RATE, betas=config.training.betas)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP)
        optimizer.zero_grad()
        trainable.module(positions(trainable, step * batch, batch)).loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(trainable.module.parameters(), config.training.gradient_clip)
        optimizer.step()
    seconds = (time.process_time() - began) / max(1, steps)
    return {
        "before": before,
        "after": losses(trainable, compared),
        "computing_seconds_per_step": round(seconds, 3),
        "sampled": sampled(trainable, compared),
    }


def positions(trainable: Trainable, first: int, count: int) -> dict[str, Tensor]:
    """Return the ``count`` samples from position ``first`` as a batch."""
    read = trainable.dataset.__getitems__  # type: ignore[attr-defined]  # torch's stubs lack it
    return default_collate(read(range(first, first + count)))


@torch.no_grad()
def losses(trainable: Trainable, batch: dict[str, Tensor]) -> dict[str, float]:
    """Return the means over ``batch`` of all that is logged of the loss."""
    values = trainable.module.train()(batch).logged()
    return {name: round(value.mean().item(), 4) for name, value in values.items()}


def sampled(trainable: Trainable, like: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation of latents sampled from noise, and of as many of ``like``."""
    noise = Latents(like["audio_noise"][:SAMPLED], like["video_noise"][:SAMPLED])
    module: Any = trainable.module  # whatever the DiT's trainable builds
    made = sample_latents(module.dit.eval(), module.process, "svg", noise, SAMPLING_STEPS)
    pairs = [*made.present.items(), *((f"{name} of data", like[name]) for name in made.present)]
    return {name: {"mean": round(x.mean().item(), 3), "std": round(x.std().item(), 3)} for name, x in pairs}


if __name__ == "__main__":
    sys.exit(main())
