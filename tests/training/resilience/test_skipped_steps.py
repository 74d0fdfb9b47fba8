"""Skipped steps in real runs: skipped on all processes, counted; after too many the run goes back."""

import json
from pathlib import Path

import pytest
import torch

from mmldm_scale.training.loop import Trainer
from mmldm_scale.training.resilience.signals import StopRequest
from tests.support import toy_trainable
from tests.support.run_results import Finished, assert_same_checkpoint, learned

EVERY_64 = ("training.checkpoint_every=64", "training.skip_limit=3")


@pytest.mark.parametrize("fault", ["loss", "gradient", "discriminator"])
@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (1, "bf16"), (3, "bf16")]
)
def test_nothing_is_learned_from_a_skipped_step(
    tmp_path: Path, alone, restored_handlers, stage: int, precision: str, fault: str
) -> None:
    """The first steps of all and the last one are broken."""
    schema = toy_trainable.ToyTraining(run=str(tmp_path), fault=fault, fault_at=[6, 22, 70])
    schema.training.zero_stage, schema.training.precision = stage, precision
    schema.adversarial.after = 0
    for total in (64, 80):
        schema.training.total_samples = total
        Trainer(toy_trainable.build_trainable(schema), schema.training, tmp_path, alone).run(StopRequest())
    before, after = (learned(tmp_path / f"checkpoints/step-0000000000{seen}") for seen in (64, 80))
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.isfinite().all(), name
        assert torch.equal(value, after[name]), name
    log = {record["samples_seen"]: record for record in Finished(tmp_path, 0, "").log()}
    assert [log[seen]["training/skipped_steps"] for seen in range(16, 81, 16)] == [1, 2, 2, 2, 3]
    assert log[80]["training/learning_rate"] == log[64]["training/learning_rate"]


@pytest.mark.parametrize(("stage", "fault"), [(0, "gradient"), (3, "loss")])
def test_a_fault_on_one_process_skips_the_step_on_all_and_resuming_stays_exact(train, stage: int, fault: str) -> None:
    """The run also resumes from a skipped step."""
    run = train(f"training.zero_stage={stage}", f"fault={fault}", "fault_at=[70,118]", "stops=[80,96]")
    assert run.status == 0, run.output
    assert run.output.count("the loss or gradient of 1 process is not finite (1 in a row)") == 4  # it trains twice
    assert run.log()[-1]["training/skipped_steps"] == 2
    pieces = Finished(run.run / "pieces", 0, "")
    assert pieces.values() == run.values()
    assert_same_checkpoint(pieces.checkpoints()[-1], run.checkpoints()[-1])


def test_too_many_skips_in_a_row_go_back_and_skip_their_data(train, tmp_path: Path) -> None:
    """The run is the same as one without that data."""
    options = [*EVERY_64, "training.zero_stage=1", "training.precision=bf16"]
    failed = train(*options, "fault_at=[70,86,102]", name="failed")
    assert failed.status == 0, failed.output
    assert failed.output.count("going back to step-000000000064") == 1
    found = json.loads((failed.run / "skipped.json").read_text())
    assert found == [{"first": 64, "end": 112, "samples_seen": 64}]
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole/skipped.json").write_text(json.dumps(found))
    whole = train(*options, name="whole")
    assert whole.status == 0, whole.output
    assert failed.values() == whole.values()
    assert_same_checkpoint(failed.checkpoints()[-1], whole.checkpoints()[-1])
    assert [record["training/skipped_samples"] for record in failed.log()[2:6]] == [0, 0, 48, 48]


def test_failing_again_from_the_same_checkpoint_stops_in_one_line(train) -> None:
    failed = train(*EVERY_64, "fault_at=[70,86,102,118,134,150]")
    assert failed.status != 0
    complaint = "3 steps in a row were skipped up to 112 samples, and again after going back to step-000000000064"
    assert complaint in failed.output
    assert "Traceback" not in failed.output.split("torch/distributed")[0]
    assert [path.name for path in failed.checkpoints()] == ["step-000000000064"]


def test_failing_before_the_first_checkpoint_stops_in_one_line(train) -> None:
    failed = train(*EVERY_64, "fault_at=[6,22,38]", processes=1)
    assert failed.status == 2
    assert "3 steps in a row were skipped up to 48 samples, before the first checkpoint; check" in failed.output
    assert "Traceback" not in failed.output


@pytest.mark.parametrize(("fault", "complaint"), [("spike", "its loss"), ("steep", "its gradient norm")])
def test_spikes_are_skipped_with_spike_factor(train, fault: str, complaint: str) -> None:
    length = ("training.total_samples=1152", "training.checkpoint_every=1152", "adversarial.after=800")
    run = train(*length, "training.spike_factor=8", f"fault={fault}", "fault_at=[38,1126]")
    assert run.status == 0, run.output
    assert f"skipped the step to 1,136 samples: {complaint}" in run.output
    assert run.output.count("skipped the step") == 1  # the other one comes too early to tell
    assert run.log()[-1]["training/skipped_steps"] == 1
    assert max(loss for seen, loss in run.losses().items() if seen > 1136) < 4
