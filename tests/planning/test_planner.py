"""The planner against what DeepSpeed sends, what torch counts, the formulas, and the shipped configurations."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import load
from mmldm_scale.models.flops import AUDIO_SHAPE, VIDEO_SHAPE, dit_macs
from mmldm_scale.planning.hardware import CLUSTERS
from mmldm_scale.planning.memory import GIB, Prediction, States, predict, run_step, working_outline
from mmldm_scale.planning.memory_table import CONFIGS
from mmldm_scale.planning.planner import Fleet, Plan, find_plans, memory_parts, traffic
from mmldm_scale.planning.workload import Workload, checkpoint_bytes, count_flops, make_workload
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.trainable import outline
from mmldm_scale.training.monitoring.throughput import PEAK_TFLOPS
from tests.support.collectives import CASES, two_process_config
from tests.support.tiny_models import tiny_autoencoder as tiny_autoencoder
from tests.support.tiny_models.autoencoder_trainable import settings_of, step_outline

TINY = ("shards=x", "model.depth=2", "model.width=128", "model.heads=2", "training.micro_batch=1")


def preset(model: str, *overrides: str, cluster: str | None = None) -> DiTTraining:
    files = [CONFIGS / f"dit/{model}.yaml", *([CONFIGS / f"cluster/{cluster}.yaml"] if cluster else [])]
    return load(DiTTraining, files, ["shards=x", *overrides])


def test_traffic_is_what_deepspeed_sends(forks, tmp_path) -> None:
    overrides, file = [*TINY, "training.precision=bf16"], tmp_path / "sent.json"
    status, said = forks(2, "call", "tests.support.collectives:record", str(file), *overrides)
    assert status == 0, said
    found = json.loads(file.read_text())
    dit, autoencoder = load(DiTTraining, [], overrides), settings_of(micro_batch=1, precision="bf16")
    steps = {
        "dit": (dit, outline(dit)),
        "autoencoder": (autoencoder, step_outline(autoencoder)),
    }
    for model, (config, step) in steps.items():
        for stage, accumulation in CASES[model]:
            expected = traffic(step, two_process_config(config.training, stage, accumulation), 2, accumulation)
            sent = found[f"{model} {stage} {accumulation}"]
            assert sent == pytest.approx(expected, rel=0.001), (model, stage, accumulation)


@pytest.mark.parametrize(("mode", "passes"), [("none", 3), ("selective", 3), ("full", 4)])
def test_arithmetic_is_that_of_the_formula_and_of_recomputation(mode: str, passes: int) -> None:
    config = preset("S", "model.depth=2", f"model.activation_checkpointing={mode}", "training.micro_batch=2")
    forward = 2 * dit_macs(config.model, AUDIO_SHAPE, VIDEO_SHAPE).flops
    found = sum(count_flops(outline(config)).values())
    assert found == pytest.approx(passes * forward, rel=0.02)


def test_the_contrastive_loss_takes_four_passes_and_all_count_as_useful() -> None:
    config = preset("S", "model.depth=2", "model.activation_checkpointing=none", "contrastive.weight=1")
    forward = dit_macs(config.model, AUDIO_SHAPE, VIDEO_SHAPE).flops
    config = replace(config, training=replace(config.training, micro_batch=1))
    workload = make_workload("dit", config, "")
    found = sum(count_flops(workload.step("none", config.training)).values())
    assert found == pytest.approx(4 * 3 * forward, rel=0.02)
    assert workload.flops_per_sample == pytest.approx(found, rel=0.02)


def test_an_autoencoders_arithmetic_is_what_torch_counts_in_a_real_step() -> None:
    config = settings_of()
    counted = count_flops(step_outline(config))
    step = step_outline(config, "cpu")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # it counts no CPU's other kernels
        run_step(step, replace(step.info, logged=False))
    assert counted == {torch.float32: counter.get_total_flops()}


def test_the_kl_vae_beside_fp16_is_arithmetic_in_float32() -> None:
    config = settings_of(0.0, precision="fp16")
    step = step_outline(config)
    model = step.module.autoencoder
    pictures = torch.empty(
        4 * (tiny_autoencoder.MEDIA.frames + 1), 3, *2 * (tiny_autoencoder.MEDIA.size,), device="meta"
    )
    with FlopCounterMode(display=False) as counter:
        model.picture_latents(pictures)
    counted = count_flops(step)
    assert counted[torch.float32] == pytest.approx(counter.get_total_flops(), rel=0.1)  # and the mel spectrogram
    assert counted[torch.float16] > 0


@pytest.fixture(scope="module")
def plans() -> dict[tuple[str, str], list[Plan]]:
    """The plans for the shipped configurations of the smallest and the largest model."""
    wanted = {("S", "a800"): 1, ("L", "v100"): 2}
    return {
        (model, gpu): find_plans(make_workload("dit", preset(model), f"DiT-{model}"), Fleet(CLUSTERS[gpu], nodes))
        for (model, gpu), nodes in wanted.items()
    }


def test_the_shipped_settings_come_out_of_it(plans) -> None:
    for (model, gpu), (best, *_) in plans.items():
        shipped = preset(model, cluster=gpu)
        assert shipped.training.precision == CLUSTERS[gpu].precision
        assert shipped.training.zero_stage == best.zero_stage
        assert shipped.model.activation_checkpointing == best.recomputation
        assert shipped.training.micro_batch <= best.micro_batch


def test_a_plan_has_the_predicted_memory_and_the_next_larger_micro_batch_no_room(plans) -> None:
    plan, cluster = plans["L", "v100"][0], CLUSTERS["v100"]
    found = [
        predict(working_outline(outline, tried), tried.training, 16)
        for tried in (preset("L", "training.precision=fp16", f"training.micro_batch={n}") for n in (12, 24))
    ]
    needed = [1.06 * prediction.total + 2 * GIB for prediction in found]
    assert (plan.zero_stage, plan.recomputation, plan.micro_batch, plan.accumulation) == (1, "none", 12, 2)
    assert plan.total == pytest.approx(needed[0])
    assert plan.memory["activations"] == found[0].activations
    assert plan.memory["optimizer"] == found[0].states.optimizer
    assert needed[1] > cluster.gibibytes * GIB


def test_memory_is_counted_at_the_very_micro_batch() -> None:
    """An autoencoder's is not so much a sample: another instant is the worst in a larger batch."""
    config = settings_of(0.0)
    batch = tiny(192)
    workload = replace(
        batch, config=replace(config, training=batch.training), outline=step_outline, recomputations={"none": False}
    )
    (plan, *_) = find_plans(workload, Fleet(CLUSTERS["a800"], 1))
    assert (plan.zero_stage, plan.micro_batch) == (1, 24)
    training = replace(workload.training, precision="bf16", global_batch=24, micro_batch=24, zero_stage=1)
    expected = predict(step_outline(replace(config, training=training)), training, 8)
    assert plan.memory["activations"] == expected.activations
    assert plan.memory["weights"] == expected.states.parameters


def test_memory_by_part_is_that_of_the_worst_instant() -> None:
    parts = memory_parts(Prediction(States(100, 20, 300, communication=7, update=40), activations=50))
    assert list(parts) == ["weights", "gradients", "optimizer", "buckets", "activations", "allocator", "CUDA and NCCL"]
    assert sum(parts.values()) == pytest.approx(1.06 * (100 + 20 + 300 + 7 + 50) + 2 * GIB)
    parts = memory_parts(Prediction(States(100, 20, 300, communication=7, update=90), activations=50))
    assert parts["optimizer's step"] == 90
    assert sum(parts.values()) == pytest.approx(1.06 * (100 + 20 + 300 + 90) + 2 * GIB)


def tiny(batch: int) -> Workload:
    intervals = ("global_batch", "total_samples", "log_every", "checkpoint_every", "preview_every")
    config = load(DiTTraining, [], [*TINY, *(f"training.{key}={batch}" for key in intervals)])
    return make_workload("dit", config, "tiny")


def test_time_is_computing_and_sending_and_the_optimizers_memory() -> None:
    workload, cluster = tiny(384), replace(CLUSTERS["a800"], network=10.0)
    near, far = (find_plans(workload, Fleet(cluster, nodes))[0] for nodes in (1, 2))
    flops, peak = workload.flops_per_sample, PEAK_TFLOPS["A800"][torch.bfloat16] * 1e12
    assert near.computing == pytest.approx(48 * flops / (0.38 * peak), rel=0.02)
    assert far.computing == pytest.approx(24 * flops / (0.38 * peak), rel=0.02)
    assert near.sending == pytest.approx(near.traffic / 200e9)
    assert far.sending == pytest.approx(far.traffic / 10e9)
    # Adam reads and writes master weights, two moments and two averages, and reads gradients in two precisions.
    count = near.traffic / (3 * 2 * 7 / 8)
    assert near.zero_stage == 1
    assert near.updating == pytest.approx((count / 8 * (2 * 5 * 4 + 4 + 2) + count * 2) / 2039e9, rel=0.001)
    assert near.mfu == pytest.approx(48 * flops / near.seconds / peak)


def test_a_checkpoint_holds_weights_and_float32_masters_moments_and_averages_twice() -> None:
    config = load(DiTTraining, [], [*TINY, "training.precision=bf16", "training.ema_lengths=[0.05,0.1]"])
    step = outline(config)
    count = sum(parameter.numel() for parameter in step.module.parameters())
    # the first average is written once more, as weights
    assert checkpoint_bytes(step, config.training) == count * (2 + 4 * (1 + 2 + 2) + 4)


def test_thousands_of_gpus_and_what_does_not_divide() -> None:
    with pytest.raises(UserError, match="384 is no multiple of the 4096 GPUs; --global-batch 4096 fits, or --nodes 48"):
        find_plans(tiny(384), Fleet(CLUSTERS["h100"], 512))
    assert find_plans(tiny(4096), Fleet(CLUSTERS["h100"], 512))[0].micro_batch == 1


def test_clips_that_are_compared_have_to_be_there_at_once() -> None:
    files = [CONFIGS / "autoencoder/landscape.yaml"]
    landscape = make_workload("autoencoder", load(AutoencoderTraining, files, ["shards=x", "kl_vae=x"]), "")
    assert landscape.samples_together == 160
    workload = replace(tiny(160), samples_together=landscape.samples_together)
    fleet = Fleet(CLUSTERS["a800"], 1)
    assert {plan.micro_batch for plan in find_plans(workload, fleet)} == {20}
    with pytest.raises(UserError, match="640 does not divide .* 8 GPUs .* at most 160 clips; contrastive_batch=160"):
        find_plans(replace(workload, samples_together=640), fleet)
