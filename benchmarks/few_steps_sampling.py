"""Benchmark of the DiT in few steps: a flow and a mean flow that begins with it, by the number of sampling steps.

    python -m benchmarks.few_steps_sampling --shards demo/corpus/latents \
        --output benchmarks/results/few_steps_sampling_MACHINE.json --plot docs/few_steps_sampling.svg

The flow trains configs/dit/demo.yaml with prediction=flow. The mean flow begins with its weights; so that both have
learned from as many samples, the flow itself is trained on, too. Each then makes samples of svg, always from the same
noise. "distance" is the energy distance of their normalised latents to those of the data, 2 E|x − y| − E|x − x'| −
E|y − y'|, by modality; "of data" is that of one half of the data to the other, and what can be reached at best.
"""

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.curves import write
from benchmarks.objectives import DEMO, LEARNING_RATE, WARMUP, positions
from benchmarks.report import machine, publish
from mmldm_scale.config import load
from mmldm_scale.diffusion.guided_sampling import Latents, sample_latents
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.trainable import build_trainable
from mmldm_scale.training.trainable import Trainable

FLOW = ["diffusion.prediction=flow", "diffusion.time_distribution=logit_normal"]
MEAN_FLOW = [*FLOW, "diffusion.mean_flow=0.5", "model.average_velocity=true"]
STEPS = (1, 2, 4, 10, 50)
DECAY = 0.97  # of the average of the weights, by step
Curve = dict[int, dict[str, float]]


def main() -> int:
    """Train, sample, print, plot and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True, help="a set of latents")
    parser.add_argument("--steps", type=int, default=400, help="training steps of the flow")
    parser.add_argument("--further", type=int, default=300, help="training steps of the mean flow, and the flow's own")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--plot", type=Path, help="picture of the curves")
    args = parser.parse_args()
    torch.set_num_threads(1)
    flow, mean_flow = (
        build_trainable(load(DiTTraining, [DEMO], [f"shards={args.shards}", *settings]))
        for settings in (FLOW, MEAN_FLOW)
    )
    learn(flow, 0, args.steps)
    mean_flow.module.load_state_dict(flow.module.state_dict(), strict=False)
    networks: dict[str, Any] = {}
    for name, trainable in (("flow", flow), ("mean flow", mean_flow)):
        learn(trainable, args.steps, args.further)
        networks[name] = trainable.module
    data = positions(flow, 0, 2 * args.samples)
    halves = [Latents(data["audio"][part], data["video"][part]) for part in (slice(0, None, 2), slice(1, None, 2))]
    noise = Latents(data["audio_noise"][: args.samples], data["video_noise"][: args.samples])
    curves = {name: curve(network, noise, halves[0]) for name, network in networks.items()}
    floor = distances(halves[1], halves[0])
    results = {
        "machine": machine("torch"),
        "training_steps": {"flow": args.steps, "then each": args.further},
        "samples": args.samples,
        "of data": floor,
        "curves": curves,
    }
    publish(results, args.output)
    if args.plot:
        panels = {
            f"{modality}: distance to the data": (
                {name: {steps: row[modality] for steps, row in of_steps.items()} for name, of_steps in curves.items()},
                floor[modality],
            )
            for modality in floor
        }
        write(args.plot, panels)
    return 0


def learn(trainable: Trainable, first: int, steps: int) -> None:
    """Train for so many ``steps``, on the samples behind the ``first`` steps; the weights are averages in the end."""
    module, batch = trainable.module.train(), 16
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    averages = copy.deepcopy(module.state_dict())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP)
        optimizer.zero_grad()
        loss = trainable.module(positions(trainable, (first + step) * batch, batch)).loss.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        for name, value in module.state_dict().items():
            averages[name].lerp_(value, 1 - min(DECAY, (step + 1) / (step + 10)))
        if step % 50 == 0:
            print(f"step {step}: {loss.item():.3f}", file=sys.stderr)
    module.load_state_dict(averages)


def curve(module: Any, noise: Latents, data: Latents) -> Curve:
    """Return by number of steps how far samples of ``module`` from ``noise`` are from ``data``."""
    network = module.dit.eval()
    made = {steps: sample_latents(network, module.process, "svg", noise, steps) for steps in STEPS}
    return {steps: distances(latents, data) for steps, latents in made.items()}


def distances(made: Latents, data: Latents) -> dict[str, float]:
    """Return the energy distance of ``made`` to ``data`` by modality."""
    pairs = {name: (latents.flatten(1), data.present[name].flatten(1)) for name, latents in made.present.items()}
    return {name: round(energy_distance(*pair), 4) for name, pair in pairs.items()}


def energy_distance(one: Tensor, other: Tensor) -> float:
    """Return the energy distance of the points ``one`` (N, D) and ``other`` (M, D), without bias."""

    def within(points: Tensor) -> Tensor:
        return torch.cdist(points, points).sum() / (len(points) * (len(points) - 1))

    return float(2 * torch.cdist(one, other).mean() - within(one) - within(other))


if __name__ == "__main__":
    sys.exit(main())
