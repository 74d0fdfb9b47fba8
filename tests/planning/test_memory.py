"""Predicted memory, held against what real engines hold and what real tensors take."""

import json
from dataclasses import replace

import pytest
import torch

from mmldm_scale.config import ContextConfig, ContrastiveConfig, DiffusionConfig, DiTConfig, TrainingConfig
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.dit import DiT
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.planning import memory
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.trainable import outline
from mmldm_scale.training.trainable import StepOutline
from tests.support.allocator import allocated
from tests.support.engine_memory import BUCKET, Net, settings
from tests.support.tiny_models import tiny_autoencoder
from tests.support.tiny_models.autoencoder_trainable import settings_of, step_outline

PROCESSES = 2
SHAPES = (4, 4, 4), (4, 8, 8)  # of a DiT's latents


def dit_outline(config: DiTTraining, device: str = "meta") -> StepOutline:
    """Return a micro-step on small latents, its network in working precision."""
    return memory.working_outline(lambda config: outline(config, *SHAPES, device), config)


@pytest.fixture(scope="module")
def held(forks, tmp_path_factory):
    """What each of PROCESSES held, by stage and precision."""
    file = tmp_path_factory.mktemp("held") / "held.json"
    status, said = forks(PROCESSES, "call", "tests.support.engine_memory:record", str(file))
    assert status == 0, said
    return json.loads(file.read_text())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_states_are_those_that_deepspeed_holds(held, stage, precision):
    module = Net()
    for parameter in module.parameters():
        parameter.data = parameter.data.to(DTYPES[precision])
    states = memory.states(module, settings(stage, precision), PROCESSES)
    trained = [p for p in module.parameters() if p.requires_grad]
    number = trained[0].element_size()
    bucket = BUCKET * number
    for stepped, accumulating in held[f"{stage} {precision}"]:
        always = states.gradients + bucket if stage == 3 else 0
        assert stepped == states.parameters + states.optimizer + always
        more = accumulating - stepped
        if stage < 2:
            assert more == states.gradients + bucket * stage
        elif stage == 2:  # not padded, and parameters that lie in two partitions count in both
            assert -2 * PROCESSES * number <= more - states.gradients <= max(p.numel() for p in trained) * number
        else:
            assert more == 0


@pytest.mark.parametrize(("weight", "recomputed"), [(0.1, False), (0.0, True)])
def test_an_autoencoders_step_on_shapes_is_the_real_one(weight, recomputed):
    config = settings_of(weight, recomputed)
    counted = {}
    for device in ("meta", "cpu"):
        step = step_outline(config, device)
        memory.run_step(step)  # the audio image's matrices move to the device
        counted[device] = memory.activations(step)
    assert counted["meta"] == pytest.approx(counted["cpu"], rel=1e-3)  # a few copies depend on a CPU's memory formats
    # Kernels on CPUs take some more for themselves, convolutions above all.
    assert counted["cpu"] <= allocated(lambda: memory.activations(step)) < 1.1 * counted["cpu"]


def test_the_discriminator_takes_part_and_recomputation_saves():
    plain, adversarial = (memory.predict(step_outline(c), c.training, 8) for c in (settings_of(0.0), settings_of()))
    assert adversarial.activations > 2 * plain.activations  # pictures are decoded, with gradients
    assert adversarial.states.optimizer > plain.states.optimizer
    assert memory.activations(step_outline(settings_of(0.0, recomputed=True))) < plain.activations


def test_the_kl_vae_is_whole_on_each_gpu_and_in_float32_beside_fp16():
    sizes = {}
    for precision in ("fp32", "bf16", "fp16"):
        config = settings_of(precision=precision, zero_stage=3)
        step = step_outline(config)
        held = [
            memory.predict(part, config.training, 8).states.parameters for part in (step, replace(step, frozen=None))
        ]
        sizes[precision] = held[0] - held[1]
    count = sum(p.numel() for p in kl_vae.build(tiny_autoencoder.KL_VAE).parameters())
    assert sizes == {"fp32": 4 * count, "bf16": 2 * count, "fp16": 4 * count}


def test_a_dits_total_is_states_and_the_larger_of_activations_and_update():
    training = TrainingConfig(precision="fp16", zero_stage=2, micro_batch=2, ema_lengths=[0.1])
    config = DiTTraining(shards=["latents"], model=DiTConfig(depth=2, width=64, heads=4), training=training)
    found = memory.predict(dit_outline(config), training, 4)
    with torch.device("meta"):
        model = DiT(config.model, *SHAPES)
    count = sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert found.states.parameters == pytest.approx(2 * count + buffers, abs=16)
    assert found.states.gradients == pytest.approx(2 * count / 4, abs=16)
    assert found.states.optimizer == pytest.approx(16 * count / 4, abs=64)
    held = found.states.parameters + found.states.gradients + found.states.optimizer
    assert found.total == held + found.states.communication + found.activations
    assert (
        replace(found, activations=0, states=replace(found.states, communication=0)).total == held + found.states.update
    )


@pytest.mark.parametrize("kind", ["class", "text"])
def test_a_dits_step_with_all_its_conditions_is_the_real_one_on_shapes_too(kind):
    training = TrainingConfig(precision="fp32", micro_batch=2)
    plain = DiTTraining(shards=["latents"], model=DiTConfig(depth=3, width=64, heads=4), training=training)
    conditioned = replace(
        plain,
        model=replace(plain.model, continuation=True),
        diffusion=DiffusionConfig(continued=0.2),
        context=ContextConfig(kind, embeddings="texts.safetensors" if kind == "text" else ""),
    )
    steps = {device: dit_outline(conditioned, device) for device in ("meta", "cpu")}
    counted = {device: memory.activations(step) for device, step in steps.items()}
    assert counted["meta"] == counted["cpu"]
    assert counted["cpu"] > 1.5 * memory.activations(dit_outline(plain))  # the branch, and its tokens
    names = {name for name, _ in steps["cpu"].module.named_parameters()}
    assert ("dit.embed_class.weight" in names) == (kind == "class")
    assert "dit.control.0.out.weight" in names


def test_the_contrastive_passes_of_a_dit_count():
    model, training = DiTConfig(depth=2, width=64, heads=4), TrainingConfig(precision="fp32", micro_batch=2)
    plain, contrastive = (
        memory.activations(
            dit_outline(
                DiTTraining(
                    shards=["latents"], model=model, contrastive=ContrastiveConfig(weight=weight), training=training
                )
            )
        )
        for weight in (0.0, 0.1)
    )
    assert 3.5 < contrastive / plain < 4.5  # four times as many samples
