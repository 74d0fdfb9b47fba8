"""``mmldm sample`` in the test's own process, with few steps."""

import argparse
from pathlib import Path

from mmldm_scale.sampling import arguments, job
from tests.support.tiny_models.weights_folders import TinyModel

FAST = ["steps=2", "decoding.steps=2", "batch_size=2"]


def sample(model: TinyModel, output: Path, *words: object, task: str = "svg", number: int | None = 5) -> int:
    """Run ``mmldm sample`` with the further arguments ``words``; return its exit status."""
    parser = argparse.ArgumentParser()
    arguments.add_arguments(parser)
    fixed = ["--checkpoint", model.dit, "--task", task, "--output", output, "--device", "cpu"]
    fixed += [] if number is None else ["--num-samples", number]
    return job.run(parser.parse_intermixed_args([str(word) for word in (*fixed, *words, *FAST)]))
