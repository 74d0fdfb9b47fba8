"""The planner against what DeepSpeed sends, what the formulas give, and the configurations that are shipped."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mmldm_scale.config import DiTTraining, load
from mmldm_scale.errors import UserError
from mmldm_scale.models.flops import AUDIO_SHAPE, VIDEO_SHAPE, dit_macs
from mmldm_scale.training.memory import dit_step, predict
from mmldm_scale.training.memory_table import CONFIGS, GIB
from mmldm_scale.training.planner import CLUSTERS, Plan, arithmetic, find_plans, report, traffic
from tests.training.harness import ENVIRONMENT

TINY = ("shards=x", "model.depth=2", "model.width=128", "model.heads=2", "training.micro_batch=1")
PROGRAM = Path(__file__).with_name("collectives.py")


def preset(model: str, *overrides: str, cluster: str | None = None) -> DiTTraining:
    files = [CONFIGS / f"dit/{model}.yaml", *([CONFIGS / f"cluster/{cluster}.yaml"] if cluster else [])]
    return load(DiTTraining, files, ["shards=x", *overrides])


def test_traffic_is_what_deepspeed_sends() -> None:
    overrides = [*TINY, "training.precision=bf16"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(PROGRAM), *overrides], env=ENVIRONMENT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    config = load(DiTTraining, [], overrides)
    for stage, accumulation in itertools.product((1, 2, 3), (1, 2)):
        expected = traffic(config, stage, 2, accumulation)
        assert found[f"{stage} {accumulation}"] == pytest.approx(expected, rel=0.02), (stage, accumulation)


@pytest.mark.parametrize(("mode", "passes"), [("none", 3), ("selective", 3), ("full", 4)])
def test_arithmetic_is_that_of_the_formula_and_of_recomputation(mode: str, passes: int) -> None:
    config = preset("S", f"model.activation_checkpointing={mode}", "training.micro_batch=2")
    forward = 2 * dit_macs(config.model, AUDIO_SHAPE, VIDEO_SHAPE).flops
    assert arithmetic(dit_step(config, AUDIO_SHAPE, VIDEO_SHAPE)) == pytest.approx(passes * forward, rel=0.02)


@pytest.fixture(scope="module")
def plans() -> dict[tuple[str, str], list[Plan]]:
    """The plans for the shipped configurations of the smallest and the largest model."""
    wanted = {("S", "a800"): 8, ("L", "v100"): 16}
    return {(model, gpu): find_plans(preset(model), CLUSTERS[gpu], gpus) for (model, gpu), gpus in wanted.items()}


def test_the_shipped_settings_come_out_of_it(plans) -> None:
    for (model, gpu), (best, *_) in plans.items():
        shipped = preset(model, cluster=gpu)
        assert shipped.training.precision == CLUSTERS[gpu].precision
        assert shipped.training.zero_stage == best.zero_stage
        assert shipped.model.activation_checkpointing == best.recomputation
        assert shipped.training.micro_batch <= best.micro_batch


def test_a_plan_has_the_predicted_memory_and_the_next_larger_micro_batch_no_room(plans) -> None:
    plan, cluster = plans["L", "v100"][0], CLUSTERS["v100"]
    needed = [
        1.06 * predict(dit_step(tried, AUDIO_SHAPE, VIDEO_SHAPE), tried.training, 16).total + 2 * GIB
        for tried in (preset("L", "training.precision=fp16", f"training.micro_batch={n}") for n in (12, 24))
    ]
    assert (plan.zero_stage, plan.recomputation, plan.micro_batch, plan.accumulation) == (1, "none", 12, 2)
    assert plan.memory == pytest.approx(needed[0], rel=0.01)
    assert needed[1] > cluster.gibibytes * GIB


def tiny(batch: int) -> DiTTraining:
    intervals = ("global_batch", "total_samples", "log_every", "checkpoint_every", "preview_every")
    return load(DiTTraining, [], [*TINY, *(f"training.{key}={batch}" for key in intervals)])


def test_time_is_computing_plus_sending() -> None:
    config, cluster = tiny(384), replace(CLUSTERS["a800"], network=10.0)
    near, far = (find_plans(config, cluster, gpus, 8)[0] for gpus in (8, 16))
    flops = 3 * dit_macs(config.model, AUDIO_SHAPE, VIDEO_SHAPE).flops
    assert near.seconds == pytest.approx(48 * flops / (0.38 * 312e12) + near.traffic / 200e9, rel=0.02)
    assert far.seconds == pytest.approx(24 * flops / (0.38 * 312e12) + far.traffic / 10e9, rel=0.02)
    assert near.mfu == pytest.approx(48 * flops / near.seconds / 312e12)


def test_thousands_of_gpus_and_what_does_not_divide() -> None:
    with pytest.raises(UserError, match="384 samples do not divide over 1024 GPUs; 1024 fits"):
        find_plans(tiny(384), CLUSTERS["h100"], 1024)
    assert find_plans(tiny(4096), CLUSTERS["h100"], 4096)[0].micro_batch == 1


def test_the_report_names_the_best_plan_s_settings_and_cost(plans) -> None:
    found = plans["S", "a800"]
    lines = report("S", preset("S"), CLUSTERS["a800"], (1, 8), found).splitlines()
    assert lines[0] == "DiT-S on 1 × 8 A800 80 GB, bf16, 384 samples a step"
    assert [line for line in lines if line.startswith("→")] == [lines[2]]
    hours = 8 * found[0].seconds * 38_400_000 / 384 / 3600
    assert f"{hours:,.0f} GPU-hours" in lines[-3]
    assert lines[-2] == "settings: training.precision=bf16 training.zero_stage=1 training.micro_batch=48"
    assert "not measured" in lines[-1]
