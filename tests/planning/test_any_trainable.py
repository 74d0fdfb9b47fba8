"""The planner takes the step from the trainable: it plans those that none of its files knows of."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mmldm_scale.models.flops import AUDIO_SHAPE, VIDEO_SHAPE
from mmldm_scale.planning import memory
from mmldm_scale.planning.hardware import CLUSTERS
from mmldm_scale.planning.planner import Fleet, find_plans
from mmldm_scale.planning.report import report
from mmldm_scale.planning.workload import checkpoint_bytes, load_config, make_workload
from mmldm_scale.trainables.dit import trainable as dit
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.loss import NoisePrediction
from mmldm_scale.trainables.registry import TRAINABLES, Registration
from mmldm_scale.training.trainable import StepOutline, StepOutput

SMALL = ("model.depth=2", "model.width=128", "model.heads=2", "training.micro_batch=2")
WEIGHT = 0.1


class WithLoudness(NoisePrediction):
    """The DiT with one more scalar in its batch and one more term in its loss."""

    def __init__(self, config: DiTTraining) -> None:
        super().__init__(config, AUDIO_SHAPE, VIDEO_SHAPE)
        self.head = nn.Linear(AUDIO_SHAPE[0], 1)

    def forward(self, batch: dict[str, Tensor]) -> StepOutput:
        output = super().forward(batch)
        features = batch["audio"].mean(dim=(2, 3)).to(self.head.weight.dtype)
        predicted = self.head(features).float().squeeze(1)
        term = (predicted - batch["loudness"]).square()
        return replace(
            output,
            loss=output.loss + WEIGHT * term,
            terms={**output.terms, "loudness": term},
            gradient_probes={"loudness": (predicted,)} if self.logged else {},
        )


def outline(config: DiTTraining) -> StepOutline:
    plain = dit.outline(config)
    with torch.device("meta"):
        module, loudness = WithLoudness(config), torch.zeros(config.training.micro_batch)
    return replace(
        plain,
        module=module,
        batch={**plain.batch, "loudness": loudness},
        term_weights={**module.term_weights, "loudness": WEIGHT},
        begin_step=module.begin_step,
    )


@pytest.fixture
def loudness(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a trainable that is registered from outside the package."""
    record = Registration(
        name="loudness",
        schema_path="mmldm_scale.trainables.dit.config:DiTTraining",
        build_path="",
        outline_path=f"{__name__}:outline",
        shards="latents",
        weights="loudness",
        weights_prefix="dit.",
    )
    monkeypatch.setitem(TRAINABLES, record.name, record)
    return record.name


def test_a_new_scalar_in_the_batch_and_a_new_term_in_the_loss_are_planned(loudness: str) -> None:
    config = load_config(loudness, [], SMALL)
    workload = make_workload(loudness, config, "loudness")
    fleet = Fleet(CLUSTERS["a800"], nodes=1)
    plans = find_plans(workload, fleet)
    assert report(workload, fleet, plans, 1000).startswith("loudness on 1 × 8 A800 80 GB")
    plain = make_workload("dit", config, "plain").step("none", config.training)
    more = memory.all_states(workload.step("none", config.training), config.training, 1).parameters
    head = 2 * (AUDIO_SHAPE[0] + 1)  # bytes of bf16 numbers; DeepSpeed rounds the whole up to an even number of them
    assert more - memory.all_states(plain, config.training, 1).parameters == pytest.approx(head, abs=2)


def test_a_kl_vae_is_planned_with_its_discriminator_and_nothing_to_recompute() -> None:
    small = ("model.channels=[32,32]", "model.blocks=1", "training.micro_batch=2", "training.precision=fp32")
    plain, adversarial = (
        load_config("kl_vae", [], [*small, f"adversarial.weight={weight}", "discriminator.width=8"])
        for weight in (0.0, 0.1)
    )
    workload = make_workload("kl_vae", adversarial, "kl_vae")
    assert workload.recomputations == {"none": None}
    assert workload.override("none") == ""
    outlines = [make_workload("kl_vae", config, "").step("none", config.training) for config in (plain, adversarial)]
    peaks = [memory.activations(outline) for outline in outlines]
    sizes = [checkpoint_bytes(outline, plain.training) for outline in outlines]
    assert 0 < peaks[0] < peaks[1]
    assert 0 < sizes[0] < sizes[1]
