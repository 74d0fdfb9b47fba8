"""Benchmark of the trainer's overhead: its step and a bare loop over the same model and optimizer, in one process.

    python -m benchmarks.overhead --output benchmarks/results/overhead_MACHINE.json

The trainer is what ``mmldm train dit`` runs: shards read by a loader worker, losses and scalars logged every ten steps,
two averages, the watch over the run. The bare loop gives a plain DeepSpeed engine batches that lie in memory and calls
forward, backward and step; once with the averages in its optimizer, once with torch's AdamW. They take turns, ten steps
each, at the beginning of a step of the trainer's; the figures are medians over these turns, data waiting and logging
included. Checkpoints are not: they come rarely and are written beside training. Seconds of the process's own computing
are told beside those of the clock: where others use the machine too, those are the ones to go by.

On a CPU the C library hands freed memory back to the system, and the next step pays for it again page by page: 12 ms
of a step's 430, and of that loop alone whose tensors happen to lie last. So here it keeps what it was given once, as
the allocator of a GPU does.
"""

import argparse
import ctypes
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import deepspeed
import torch
from torch.utils.data import default_collate

from benchmarks.reading import make_latents
from benchmarks.report import machine, publish
from mmldm_scale.config import load
from mmldm_scale.trainables.dit import trainable as dit_trainable
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.training import loop
from mmldm_scale.training.engine.deepspeed_engine import deepspeed_config
from mmldm_scale.training.engine.optimizer import EMAAdamW
from mmldm_scale.training.trainable import StepInfo, Trainable

TURN = 10  # steps; as many as from one line of the log to the next
BATCH, MICRO_BATCH = 4, 2
MODEL = {"depth": 4, "width": 192, "heads": 3, "context_tokens": 77, "context_width": 64}
TRAINER, BARE, PLAIN = "trainer", "bare loop", "bare loop without averages"


def main() -> int:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=12, help="of each; one more comes first and does not count")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the loader worker has a core of its own on the smallest of machines
    keep_freed_memory()
    results = {"machine": machine("torch", "deepspeed"), **measure(args.turns, MODEL)}
    publish(results, args.output)
    return 0


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: no tensor of these sizes in a mapping of its own, and nothing given back.

    Raises:
        RuntimeError: the C library has no mallopt, or refuses an option.
    """
    trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
    options = {trim_threshold: 2**31 - 1, mmap_threshold: 2**25}  # the largest that it takes
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not all(mallopt(*option) for option in options.items()):
        raise RuntimeError("this benchmark needs glibc's mallopt")


def measure(turns: int, model: dict[str, int]) -> dict[str, object]:
    """Return each one's seconds per step, and how many times the bare loop's the trainer's is."""
    total = (turns + 2) * TURN * BATCH  # the first turn does not count, and the last is not timed to its end
    sizes = {"total_samples": total, "checkpoint_every": total, "preview_every": total}
    sizes |= {"global_batch": BATCH, "micro_batch": MICRO_BATCH, "log_every": TURN * BATCH, "workers": 1}
    settings = [f"model.{name}={value}" for name, value in model.items()]
    settings += [f"training.{name}={value}" for name, value in sizes.items()]
    with tempfile.TemporaryDirectory() as folder:
        latents, run = make_latents(Path(folder) / "latents", shards=2), Path(folder) / "run"
        where = [f"shards={latents}", f"run={run}", "training.precision=fp32"]
        schema = load(DiTTraining, overrides=[*where, *settings])
        turn_taking = TurnTaking(schema)
        if loop.train(turn_taking.build_trainable, schema):
            raise AssertionError("the run was stopped")
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    results = {"model": model | {"parameters": turn_taking.parameters}, "samples_per_step": BATCH, "turns": turns}
    for which, kind in enumerate(("", "computing_")):
        medians = {name: median(t[which] for t in times[1:]) / TURN for name, times in turn_taking.seconds.items()}
        results[f"{kind}seconds_per_step"] = {name: round(value, 4) for name, value in medians.items()}
        times = {name: round(medians[TRAINER] / medians[name], 3) for name in (BARE, PLAIN)}
        results[f"trainer_{kind}is_times"] = times
    return results | {"data_wait_share": round(median(record["speed/data_wait_share"] for record in log), 5)}


class TurnTaking:
    """The DiT's trainable whose steps begin, every ``TURN`` of them, with as many of the bare loops.

    Attributes:
        seconds: what each turn of each loop took, by the clock and of the process's computing.
        parameters: of the model.
    """

    def __init__(self, schema: DiTTraining) -> None:
        self.seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in (TRAINER, BARE, PLAIN)}
        self.parameters = 0
        self._schema = schema
        self._loops: dict[str, Iterator[None]] = {}
        self._steps, self._began = 0, now()

    def build_trainable(self, schema: DiTTraining) -> Trainable:
        """Return the trainer's trainable, after building the bare loops' engines beside it."""
        for name, build in ((BARE, self._averaging), (PLAIN, torch.optim.AdamW)):
            self._loops[name] = bare_loop(dit_trainable.build_trainable(schema), schema, build)
        trainable = dit_trainable.build_trainable(schema)
        self.parameters = sum(parameter.numel() for parameter in trainable.module.parameters())
        return dataclasses.replace(trainable, begin_step=self._begin_step)

    def _begin_step(self, step: StepInfo) -> None:
        if self._steps % TURN == 0:
            if self._steps:
                self._end(TRAINER)
            for name, bare in self._loops.items():
                self._began = now()
                for _ in range(TURN):
                    next(bare)
                self._end(name)
            self._began = now()
        self._steps += 1

    def _end(self, name: str) -> None:
        (clock, computing), began = now(), self._began
        self.seconds[name].append((clock - began[0], computing - began[1]))

    def _averaging(self, parameters: list[torch.nn.Parameter], **options: object) -> EMAAdamW:
        return EMAAdamW(parameters, lengths=self._schema.training.ema_lengths, **options)


def bare_loop(trainable: Trainable, schema: DiTTraining, build: Callable[..., torch.optim.Optimizer]) -> Iterator[None]:
    """Train ``trainable`` with the optimizer that ``build`` makes, a step for each ``next``."""
    config, parameters = schema.training, list(trainable.module.parameters())
    optimizer = build(parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)
    settings = deepspeed_config(config, world_size=1)
    engine, *_ = deepspeed.initialize(
        model=trainable.module, model_parameters=parameters, optimizer=optimizer, config=settings
    )
    positions = [range(first, first + MICRO_BATCH) for first in range(0, 8 * MICRO_BATCH, MICRO_BATCH)]
    read = trainable.dataset.__getitems__  # type: ignore[attr-defined]  # torch's stubs lack it
    batches = [default_collate(read(list(batch))) for batch in positions]
    while True:
        for micro in range(engine.gradient_accumulation_steps()):
            engine.backward(engine(batches[micro]).loss.mean())
            engine.step()
        batches.append(batches.pop(0))
        yield


def now() -> tuple[float, float]:
    """Return the seconds on the clock, and those that this process has computed."""
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    sys.exit(main())
