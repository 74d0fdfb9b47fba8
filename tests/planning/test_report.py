"""``mmldm plan``: what it prints, and what it refuses in one line."""

import pytest

from mmldm_scale.cli import main
from mmldm_scale.planning.planner import Plan

SMALL = ["model.depth=1", "model.width=128", "model.heads=2"]


def printed(capsys, *arguments: str) -> list[str]:
    assert main(["plan", "--gpu", "a800", *arguments, *SMALL]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_report_names_memory_time_settings_and_cost(capsys) -> None:
    lines = printed(capsys, "--model", "S", "--nodes", "1", "--samples", "1000000")
    assert lines[0] == "DiT-S on 1 × 8 A800 80 GB, bf16, 384 samples a step"
    (best,) = (line for line in lines if line.startswith("→"))
    (memory,) = (line for line in lines if line.startswith("memory, GiB: "))
    parts = [part.strip().rpartition(" ") for part in memory.partition(":")[2].split(",")]
    assert [name for name, _, _ in parts] == [
        *("weights", "gradients", "optimizer", "buckets", "activations", "allocator", "CUDA and NCCL")
    ]
    assert sum(float(size) for *_, size in parts) == pytest.approx(float(best.split()[6]), abs=0.3)
    assert any(line.startswith("step, s: computing ") for line in lines)
    assert any(line.startswith("1,000,000 samples: ") for line in lines)
    assert lines[-3] == "settings: training.precision=bf16 training.zero_stage=1 training.micro_batch=48"
    assert lines[-2].startswith("assumed, not measured: 38% of the dense peak")


def test_it_warns_where_the_network_dominates_and_where_gpus_are_half_empty(capsys) -> None:
    lines = printed(capsys, "--model", "S", "--nodes", "512", "--global-batch", "8192", "--network", "1")
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert "of the time goes into sending between nodes" in warnings[0]
    assert warnings[1].startswith("warning: with a micro-batch of 2 a GPU is likely to be slower")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "S", "--nodes", "0"], "--nodes 0 --gpus-per-node 8: both must be at least 1"),
        (["--model", "S", "--samples", "0"], "--samples 0: must be at least 1"),
        (["--model", "S", "--network", "0"], "--network 0: GB/s between two nodes must be above 0"),
        (["--model", "S", "--global-batch", "0"], "--global-batch 0: must be at least 1"),
        (["--model", "S", "--nodes", "512"], "384 is no multiple of the 4096 GPUs"),
        (["--model", "autoencoder"], "as --preset NAME or --config FILE"),
    ],
)
def test_mistake_is_one_line(arguments, complaint, capsys) -> None:
    assert main(["plan", "--gpu", "a800", *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_a_plan_adds_up() -> None:
    plan = Plan(1, "none", 2, 3, "", {"a": 1.0, "b": 2.0}, 0.0, 0.5, 0.25, 0.125, 0.1)
    assert (plan.total, plan.seconds) == (3.0, 0.875)
