"""Resuming on another number of processes: the same run up to rounding, the same state to the bit."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from safetensors.torch import load_file

from mmldm_scale.training.checkpoint.manifest import MANIFEST, seal
from tests.support.run_results import EVERY_STEP, Finished, Forks, assert_same_checkpoint


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """By precision, a run of ten steps on two processes that was never stopped."""
    runs = {}
    for precision in ("fp32", "bf16"):
        run = tmp_path_factory.mktemp("whole") / precision
        runs[precision] = Finished(run, *forks(2, "train", f"run={run}", f"training.precision={precision}"))
        assert runs[precision].status == 0, runs[precision].output
    return runs


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints/step-000000000160/weights/model.safetensors")


def differences(run: Path, other: Path, name: str) -> list[float]:
    """Return the relative differences of what two runs logged under ``name``, step by step."""
    one, two = ({r["samples_seen"]: r[name] for r in Finished(r, 0, "").log() if name in r} for r in (run, other))
    assert one.keys() == two.keys()
    return [abs(one[step] / two[step] - 1) for step in one]


@pytest.mark.parametrize(
    ("stage", "precision", "processes", "tolerance"),
    [
        (0, "fp32", (2, 4), 1e-6),
        (1, "fp32", (1, 2, 4, 2, 1), 1e-6),
        (2, "fp32", (1, 2, 4, 2, 1), 1e-6),
        (3, "fp32", (1, 2, 4, 2, 1), 1e-6),
        (1, "bf16", (2, 4), 0.02),
        (2, "bf16", (2, 1), 0.02),
        (3, "bf16", (2, 4), 0.02),
    ],
)
def test_run_on_another_number_of_processes_differs_only_by_rounding(
    tmp_path, forks, whole, stage: int, precision: str, processes: tuple[int, ...], tolerance: float
) -> None:
    """The first change comes before the discriminator has taken a step, others after."""
    before = None
    for leg, count in enumerate(processes, 1):
        total = 160 // len(processes) // 16 * leg * 16
        zero = f"training.zero_stage={stage}", f"training.precision={precision}"
        status, said = forks(count, "train", f"run={tmp_path}", f"training.total_samples={total}", *zero, *EVERY_STEP)
        assert status == 0, said
        now = f"{count} process{'es' * (count > 1)}"
        line = f"resuming on {now} (ZeRO-{stage}) a run that {before} (ZeRO-{stage}) wrote"
        assert (line in said.splitlines()) == (before is not None), said
        before = count
    assert sorted(map(int, (tmp_path / "positions").read_text().split())) == list(range(160))
    assert max(differences(tmp_path, whole[precision].run, "loss")) < tolerance
    assert max(differences(tmp_path, whole[precision].run, "discriminator/loss")) < tolerance
    for name, value in weights(whole[precision].run).items():
        torch.testing.assert_close(weights(tmp_path)[name], value, rtol=tolerance, atol=tolerance)


def test_state_cut_for_other_processes_and_stages_and_back_is_the_same_to_the_bit(tmp_path, forks) -> None:
    """Three processes leave padding everywhere; the small groups make several flat tensors of ZeRO-3's one."""
    shape = ("training.global_batch=12", "training.micro_batch=1", "training.total_samples=48", "adversarial.after=24")
    every = ("training.log_every=24", "training.checkpoint_every=24", "training.preview_every=24")
    small = "training.deepspeed.zero_optimization={sub_group_size: 300, stage3_param_persistence_threshold: 0}"
    options = (*shape, *every, small, "training.precision=bf16")
    status, said = forks(2, "train", f"run={tmp_path}/run", *options, "training.zero_stage=1")
    assert status == 0, said
    first = last = tmp_path / "run/checkpoints/step-000000000048"
    _mark(first)
    written_by = 2
    for number, (processes, stage) in enumerate([(3, 1), (3, 3), (4, 3), (1, 2), (2, 3), (4, 2), (2, 1)]):
        to = tmp_path / f"cut-{number}"
        where = str(last), written_by, str(to)
        status, said = forks(processes, "repartition", *where, *options, f"training.zero_stage={stage}")
        assert status == 0, said
        last, written_by = to, processes
    assert_same_checkpoint(first, last, ("discriminator", "engine"))


def _mark(checkpoint: Path) -> None:
    """Put a loss scaler and a buffer into ``checkpoint`` that no new engine has."""
    scaler = DynamicLossScaler(128.0, 2.0, 500, 1.0, 2, False, dtype=torch.float16)
    scaler.cur_iter = 7
    for file in checkpoint.glob("*/*.pt"):
        state = torch.load(file, weights_only=False)
        if "optim_states" in file.name:
            state["optimizer_state_dict"]["loss_scaler"] = scaler
        elif file.parent.name == "engine":
            state["module"]["scale"] = torch.tensor(3.0)
        torch.save(state, file)


def test_states_that_do_not_cover_a_parameter_are_refused_in_one_line(tmp_path, forks) -> None:
    """With a manifest that fits."""
    status, said = forks(2, "train", f"run={tmp_path}", "training.total_samples=64")
    assert status == 0, said
    checkpoint, name = tmp_path / "checkpoints/step-000000000064", "engine/zero_pp_rank_1_mp_rank_00_optim_states.pt"
    state = torch.load(checkpoint / name, weights_only=False)
    state["optimizer_state_dict"]["param_slice_mappings"][0]["net.2.bias"].numel = 3
    torch.save(state, checkpoint / name)
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    content = (checkpoint / name).read_bytes()
    manifest["files"][name] = [len(content), hashlib.sha256(content).hexdigest()]
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    seal(checkpoint)
    status, said = forks(1, "train", f"run={tmp_path}")
    assert status == 2
    assert "Traceback" not in said
    assert "engine is of another model or configuration: ValueError: net.2.bias has 3 of 16 elements" in said
