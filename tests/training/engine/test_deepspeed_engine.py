"""DeepSpeed's configuration, derived from ours."""

import pytest
import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import TrainingConfig, load
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.trainable import outline
from mmldm_scale.training.engine.deepspeed_engine import averaged_state, build, deepspeed_config
from mmldm_scale.training.engine.distributed import World


def training(**changes) -> TrainingConfig:
    intervals = {"total_samples": 960, "log_every": 96, "checkpoint_every": 96, "preview_every": 96}
    return TrainingConfig(**{"global_batch": 96, "micro_batch": 4, **intervals, **changes})


def test_accumulation_follows_from_the_number_of_processes() -> None:
    assert deepspeed_config(training(), 8)["gradient_accumulation_steps"] == 3
    assert deepspeed_config(training(), 1)["gradient_accumulation_steps"] == 24


def test_batch_that_does_not_divide_names_one_that_fits() -> None:
    with pytest.raises(UserError, match="try training.micro_batch=3"):
        deepspeed_config(training(), 32)
    with pytest.raises(UserError, match="it must be a multiple of 7"):
        deepspeed_config(training(), 7)


def test_raw_additions_are_merged_but_cannot_contradict() -> None:
    settings = deepspeed_config(training(zero_stage=2, deepspeed={"zero_optimization": {"overlap_comm": False}}), 1)
    assert settings["zero_optimization"] == {"stage": 2, "overlap_comm": False}
    with pytest.raises(UserError, match="set training.gradient_clip instead"):
        deepspeed_config(training(deepspeed={"gradient_clipping": 3}), 1)


def test_option_that_mixes_parameters_up_is_refused() -> None:
    with pytest.raises(UserError, match="round_robin_gradients: must be left out"):
        deepspeed_config(training(deepspeed={"zero_optimization": {"round_robin_gradients": True}}), 2)


def test_offload_and_precision_are_passed_on() -> None:
    settings = deepspeed_config(training(zero_stage=1, offload_optimizer=True, precision="fp16"), 1)
    assert settings["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert settings["fp16"]["enabled"]
    assert not settings["bf16"]["enabled"]


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(("size", "buffer"), [(None, 12), (500_000_000, 12), (5, 5)])
def test_the_buffer_for_gradients_is_not_larger_than_they_are(
    alone: World, stage: int, size: int | None, buffer: int
) -> None:
    """The default's would be 2 GB, for a model of any size."""
    zero = {} if size is None else {"reduce_bucket_size": size}
    module = torch.nn.Sequential(torch.nn.Linear(3, 3))  # 12 parameters
    engine = build(module, training(precision="fp32", zero_stage=stage, deepspeed={"zero_optimization": zero}), alone)
    assert engine.optimizer.reduce_bucket_size == buffer


def test_a_buffer_of_no_size_is_refused(alone: World) -> None:
    settings = training(precision="fp32", deepspeed={"zero_optimization": {"reduce_bucket_size": "much"}})
    with pytest.raises(UserError, match="zero_optimization.reduce_bucket_size: much: must be at least 1"):
        build(torch.nn.Sequential(torch.nn.Linear(3, 3)), settings, alone)


@pytest.mark.parametrize("recomputation", ["selective", "full"])
@pytest.mark.parametrize("stage", [1, 3])
def test_recomputation_changes_nothing_of_what_is_learned(alone: World, stage: int, recomputation: str) -> None:
    """Not with ZeRO-3 either, which has linear layers of its own."""
    small = ["shards=x", "model.depth=2", "model.width=32", "model.heads=2", "training.precision=fp32"]
    learned = []
    for mode in ("none", recomputation):
        torch.nn.functional.linear = torch._C._nn.linear  # as at the start of a process, before ZeRO-3 replaces it
        lengths = [f"training.{key}=2" for key in ("global_batch", "micro_batch", "total_samples")]
        intervals = [f"training.{key}_every=2" for key in ("log", "checkpoint", "preview")]
        overrides = [f"model.activation_checkpointing={mode}", f"training.zero_stage={stage}"]
        config = load(DiTTraining, [], [*small, *lengths, *intervals, *overrides])
        torch.manual_seed(0)
        step = outline(config, device="cpu")
        for parameter in step.module.parameters():
            if not parameter.any():  # zero-initialised layers, as training opens them
                torch.nn.init.normal_(parameter, std=0.1)
        engine = build(step.module, config.training, alone)
        for group in engine.basic_optimizer.param_groups:
            group["lr"] = 1e-3
        engine.backward(engine(step.batch).loss.mean())
        engine.step()
        learned.append(averaged_state(engine, alone))
    for name, weight in learned[0].items():
        # Adam's step is 1e-3; where a gradient is all but 0, it makes steps of the rounding.
        torch.testing.assert_close(learned[1][name], weight, rtol=0, atol=2e-5, msg=name)
