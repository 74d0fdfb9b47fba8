"""DeepSpeed's configuration, derived from ours."""

import pytest

from mmldm_scale.config import TrainingConfig
from mmldm_scale.errors import UserError
from mmldm_scale.training.engine import deepspeed_config


def training(**changes) -> TrainingConfig:
    intervals = {"total_samples": 960, "log_every": 96, "checkpoint_every": 96, "preview_every": 96}
    return TrainingConfig(**{"global_batch": 96, "micro_batch": 4, **intervals, **changes})


def test_accumulation_follows_from_the_number_of_processes() -> None:
    assert deepspeed_config(training(), 8)["gradient_accumulation_steps"] == 3
    assert deepspeed_config(training(), 1)["gradient_accumulation_steps"] == 24


def test_batch_that_does_not_divide_names_one_that_fits() -> None:
    with pytest.raises(UserError, match="training.micro_batch=3 fits"):
        deepspeed_config(training(), 32)
    with pytest.raises(UserError, match="a multiple of 7 fits"):
        deepspeed_config(training(), 7)


def test_raw_additions_are_merged_but_cannot_contradict() -> None:
    settings = deepspeed_config(training(zero_stage=2, deepspeed={"zero_optimization": {"overlap_comm": False}}), 1)
    assert settings["zero_optimization"] == {"stage": 2, "overlap_comm": False}
    with pytest.raises(UserError, match="set training.gradient_clip instead"):
        deepspeed_config(training(deepspeed={"gradient_clipping": 3}), 1)


def test_option_that_mixes_parameters_up_is_refused() -> None:
    with pytest.raises(UserError, match="round_robin_gradients: with it DeepSpeed takes one parameter for another"):
        deepspeed_config(training(deepspeed={"zero_optimization": {"round_robin_gradients": True}}), 2)


def test_offload_and_precision_are_passed_on() -> None:
    settings = deepspeed_config(training(zero_stage=1, offload_optimizer=True, precision="fp16"), 1)
    assert settings["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert settings["fp16"]["enabled"]
    assert not settings["bf16"]["enabled"]
