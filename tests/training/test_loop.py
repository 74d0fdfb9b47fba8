"""The trainer on the real DeepSpeed engine, in real processes: exactness, resuming, and what ends a run."""

import signal
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmldm_scale.runs import status, summary
from mmldm_scale.training.engine.ema import exponent
from mmldm_scale.training.resilience.signals import EXIT_STOPPED
from tests.support.run_results import ENVIRONMENT, EVERY_STEP, Finished, assert_same_checkpoint, command


def weights(run: Path, step: int = 160) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step-{step:012d}/weights/model.safetensors")


def means(finished: Finished, step: int, before: int) -> dict[str, float]:
    """Return the values of a record at ``step``, if the record before it is at ``before``, that all steps have."""
    of_steps = [values for seen, values in finished.values().items() if before < seen <= step]
    names = [name for name in of_steps[-1] if name.startswith(("loss", "term/", "weighted/", "discriminator/lo"))]
    known = {name: [values[name] for values in of_steps if name in values] for name in names}
    return {name: sum(values) / len(values) for name, values in known.items()}


def assert_means(run: Finished, of: Finished, rel: float) -> None:
    """Assert that the records of ``run`` have the means of those of ``of``, which logged each step up to 160."""
    seen = [0, *(step for step in run.values() if step <= 160)]
    for before, step in pairwise(seen):
        expected = means(of, step, before)
        assert {name: run.values()[step][name] for name in expected} == pytest.approx(expected, rel=rel)


def assert_same_run(one: Finished, other: Finished) -> None:
    assert one.values() == other.values()
    assert_same_checkpoint(one.checkpoints()[-1], other.checkpoints()[-1])


def test_losses_fall_and_everything_is_logged(undisturbed: Finished) -> None:
    log = undisturbed.log()
    assert [record["samples_seen"] for record in log] == list(range(16, 161, 16))
    assert log[-1]["term/mse"] < 0.8 * log[0]["term/mse"]
    assert {"loss/half", "training/learning_rate", "training/gradient_norm", "speed/mfu"} <= log[0].keys()
    assert {"speed/goodput", "memory/host_gib", "memory/host_free_gib"} <= log[0].keys()
    assert {"time/saving", "time/preview"} <= set().union(*log)
    assert {"discriminator/loss", "discriminator/gradient_norm", "discriminator/learning_rate"} <= log[-1].keys()
    assert not [name for record in log[:3] for name in record if "discriminator" in name]
    assert [record["weight/adversarial"] for record in log] == pytest.approx(
        [0, 0, 0, 0.05, 0.1, 0.15, 0.2, 0.2, 0.2, 0.2]
    )
    assert log[0]["data/quarantined"] == 0
    terms = sum(log[-1][f"weighted/{name}"] for name in ("mse", "size", "adversarial"))
    assert terms == pytest.approx(log[-1]["loss"], rel=1e-5)
    assert log[0]["loss/half"] == pytest.approx(log[0]["loss"] / 2)
    events = EventAccumulator(str(undisturbed.run / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    for shown in ("network", "averages/net.0.weight", "averages/net.2.weight"):
        assert [event.step for event in events.Images(shown)] == [64, 128, 160]


def test_a_start_and_an_end_are_described(undisturbed: Finished) -> None:
    lines = undisturbed.output.splitlines()
    assert "training dit: 1,344 parameters, 1,072 of them trained; a discriminator of 289" in lines
    assert any(line.startswith("on 2 processes (CPU, ") and line.endswith("= global batch 16") for line in lines)
    assert "weights: begin at random" in lines
    intervals = (
        "checkpoints every 16 samples and 30 min (100 kept), previews every 64 samples and 30 min, no validation"
    )
    assert f"writes to {undisturbed.run}: log every 16 samples, {intervals}" in lines
    assert "ends at 160 samples: 160 samples, 10 steps from here" in lines
    (end,) = [line for line in lines if line.startswith("finished: 160 of 160 samples; 160 of them in ")]
    assert end.endswith(f"weights in {undisturbed.run}/checkpoints/step-000000000160/weights")


def test_status_shows_the_progress_of_the_run(undisturbed: Finished) -> None:
    lines = status.page(summary.read_summary(undisturbed.run))
    said = {line[2:14].strip(): line[15:] for line in lines[1:]}
    assert "batch 16, fp32, ZeRO-2" in lines[0]
    assert said["progress"].startswith("160 of 160 samples (100.0%)")
    assert said["state"].startswith("finished, last record")
    loss = undisturbed.losses()
    recent, earlier = (sum(loss[at] for at in range(first, first + 80, 16)) for first in (96, 16))
    assert said["loss"].startswith(f"{loss[160]:.4f} ({recent / earlier - 1:+.1%})")
    assert said["checkpoints"].startswith("last at 160 (")
    assert "10 kept (16 … 128 144 160)" in said["checkpoints"]


def test_killed_while_saving_and_while_training_ends_with_the_same_weights(tmp_path, forks, train, undisturbed) -> None:
    """Before the discriminator begins to play and while its weight rises; after that in the test of the ZeRO stages."""
    run = tmp_path / "run"
    for sight in ("checkpoints/step-000000000032.tmp", "checkpoints/step-000000000064"):
        how = (1, signal.SIGKILL, f"{run}/{sight}")
        status, said = forks(2, "signalled", *how, "train", f"run={run}", *EVERY_STEP)
        assert status == signal.SIGKILL, said
        assert "LostContact: " in said  # of the other rank
        assert not (run / "checkpoints/step-000000000160").exists()
    finished = train(*EVERY_STEP)
    assert finished.status == 0, finished.output
    assert "resuming from" in finished.output
    assert_same_run(finished, undisturbed)


# A record, but for the first, after several steps; a save and a preview after any step, as the clock has it.
RARELY = ("training.log_every=48", "training.checkpoint_minutes=1e-6", "training.preview_minutes=1e-6")


def test_signal_to_one_rank_saves_on_all_and_resumes(tmp_path, forks, train, undisturbed) -> None:
    run = tmp_path / "run"
    how = (1, signal.SIGUSR1, f"{run}/log.jsonl")
    status, said = forks(2, "signalled", *how, "train", f"run={run}", "training.total_samples=1600", *RARELY)
    assert status == EXIT_STOPPED, said
    assert said.count("stopping at") == 1
    assert "Traceback" not in said
    saved = sorted((run / "checkpoints").iterdir())[-1]
    at = int(saved.name.removeprefix("step-"))
    assert at < 1600
    finished = train(f"training.total_samples={160 if at < 160 else 1600}", *RARELY)
    assert finished.status == 0, finished.output
    assert [record["samples_seen"] for record in finished.log()][:3] == [16, 48, 64]
    assert_means(finished, undisturbed, rel=1e-9)
    if at < 160:
        assert_same_checkpoint(finished.checkpoints()[-1], undisturbed.checkpoints()[-1])


@pytest.mark.parametrize(
    ("processes", "overrides"),
    [
        (1, ["training.micro_batch=16"]),
        (1, ["training.micro_batch=2", "training.workers=2", "training.log_every=32"]),
        (4, ["training.micro_batch=4"]),
    ],
)
def test_number_of_processes_micro_batches_and_workers_changes_nothing(
    train, undisturbed, processes: int, overrides: list[str]
) -> None:
    other = train(*overrides, processes=processes)
    assert other.status == 0, other.output
    assert 160 in other.losses()
    assert_means(other, undisturbed, rel=1e-5)
    for step, values in other.values().items():
        gradients = {name for name in values if name.startswith(("gradient_norm/", "training/", "weight/"))}
        expected = undisturbed.values()[step]
        assert {name: values[name] for name in gradients} == pytest.approx(
            {name: expected[name] for name in gradients}, rel=1e-5
        )
    for name, value in weights(undisturbed.run).items():
        torch.testing.assert_close(weights(other.run)[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("stage", "precision", "tolerance"),
    [(0, "fp32", 1e-6), (3, "fp32", 1e-6), (1, "bf16", 0.02)],
)
def test_every_zero_stage_trains_and_averages_alike_and_resumes(
    train, undisturbed, stage: int, precision: str, tolerance: float
) -> None:
    """Resumed before the discriminator takes part, while its weight rises, and after."""
    options = [f"training.zero_stage={stage}", f"training.precision={precision}", "stops=[32,80,128]"]
    if stage == 3:  # else all of so small a network stays gathered
        options.append("training.deepspeed.zero_optimization.stage3_param_persistence_threshold=0")
    other = train(*options)
    assert other.status == 0, other.output
    for step, loss in undisturbed.losses().items():
        assert other.losses()[step] == pytest.approx(loss, rel=tolerance)
    for name, value in weights(undisturbed.run).items():
        torch.testing.assert_close(weights(other.run)[name], value, rtol=tolerance, atol=tolerance)
    assert_same_run(Finished(other.run / "pieces", 0, ""), other)


def test_averaged_weights_are_the_average_of_the_weights(undisturbed: Finished) -> None:
    """Against the integral over the raw weights of each step's checkpoint, for the first length."""
    ends = range(16, 161, 16)
    files = [undisturbed.run / f"checkpoints/step-{end:012d}/engine/mp_rank_00_model_states.pt" for end in ends]
    raw = [torch.load(file, weights_only=True)["module"] for file in files]
    shares = torch.diff((torch.arange(11, dtype=torch.float64) / 10) ** (exponent(0.1) + 1))
    saved = weights(undisturbed.run)
    assert set(saved) == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias", "scale"}
    for name in set(saved) - {"scale"}:
        average = sum(share * step[name].double() for share, step in zip(shares, raw, strict=True))
        torch.testing.assert_close(saved[name].double(), average, rtol=1e-5, atol=1e-6)


def test_finished_run_started_again_does_nothing(forks, undisturbed: Finished) -> None:
    before = {p: p.stat().st_mtime_ns for p in (undisturbed.run / "checkpoints").rglob("*")}
    status, said = forks(2, "train", f"run={undisturbed.run}", *EVERY_STEP)
    assert status == 0, said
    assert f"finished before, nothing to do: 160 of 160 samples; weights in {undisturbed.run}/checkpoints/" in said
    assert {p: p.stat().st_mtime_ns for p in (undisturbed.run / "checkpoints").rglob("*")} == before
    assert len(undisturbed.log()) == 10


def test_one_ranks_error_ends_all_quickly_and_is_shown_once(tmp_path) -> None:
    # far below the 600 seconds that the other rank would wait for this one
    options = ("failing_position=70", "training.total_samples=16000", "training.collective_timeout=600")
    program = command(tmp_path / "run", *options)
    broken = subprocess.run(program, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert broken.returncode != 0
    assert broken.stderr.count("sample 70 cannot be read") == 1


def test_another_configuration_is_refused_on_the_same_run(forks, undisturbed: Finished) -> None:
    status, said = forks(1, "train", f"run={undisturbed.run}", *EVERY_STEP, "training.seed=1")
    assert status == 2
    assert "started with training.seed=0, not 1" in said
    assert "Traceback" not in said
