"""Checkpoints: damage of every kind is detected before anything is loaded, and an older whole one is used."""

import hashlib
import json
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import pytest

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import TrainingConfig
from mmldm_scale.training.checkpoint.manager import Checkpoints
from mmldm_scale.training.checkpoint.manifest import MANIFEST, SEAL, DamagedCheckpoint, read_manifest, seal
from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.loop import Trainer
from mmldm_scale.training.resilience.signals import StopRequest
from tests.support import toy_trainable
from tests.support.run_results import EVERY_STEP

LAST, BEFORE = "step-000000000160", "step-000000000144"


@pytest.fixture
def run(tmp_path: Path, undisturbed) -> Path:
    """A copy of the undisturbed run with its last two checkpoints."""
    shutil.copytree(undisturbed.run, tmp_path / "run")
    for folder in (tmp_path / "run/checkpoints").iterdir():
        if folder.name not in (LAST, BEFORE):
            shutil.rmtree(folder)
    return tmp_path / "run"


def newest(run: Path, alone) -> str:
    return Checkpoints(run, alone, TrainingConfig(), inputs={}).newest().name


def test_newest_whole_checkpoint_is_found(run, alone) -> None:
    (run / "checkpoints/step-000000000176.tmp").mkdir()
    assert newest(run, alone) == LAST


def test_manifest_covers_every_file_and_no_code_lies_among_them(run) -> None:
    manifest = read_manifest(run / "checkpoints" / LAST)
    present = {p.relative_to(run / "checkpoints" / LAST).as_posix() for p in (run / "checkpoints" / LAST).rglob("*.*")}
    assert present == {*manifest.files, MANIFEST, SEAL}
    assert not [name for name in present if name.endswith(".py")]
    assert (manifest.samples_seen, manifest.world_size, manifest.zero_stage) == (160, 2, 2)


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_reported_and_the_checkpoint_before_is_used(run, alone, capfd, seed: int) -> None:
    dice = random.Random(seed)
    file = dice.choice(sorted(p for p in (run / "checkpoints" / LAST).rglob("*") if p.is_file()))
    kind = dice.choice(["flip", "cut", "remove", "grow"])
    content = bytearray(file.read_bytes())
    if kind == "flip":
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    elif kind == "cut":
        del content[dice.randrange(len(content)) :]
    elif kind == "grow":
        content += b"x"
    file.unlink() if kind == "remove" else file.write_bytes(content)
    assert newest(run, alone) == BEFORE
    assert LAST in capfd.readouterr().err


def test_manifest_with_another_clock_is_damaged(run, alone, capfd) -> None:
    file = run / "checkpoints" / LAST / MANIFEST
    file.write_text(file.read_text().replace('"samples_seen": 160', '"samples_seen": 161'))
    assert newest(run, alone) == BEFORE
    assert f"{LAST}: skipped, manifest.json differs from the sha256 in manifest.sha256" in capfd.readouterr().err


def test_no_whole_checkpoint_is_an_error_not_a_fresh_start(run, alone) -> None:
    for name in (LAST, BEFORE):
        (run / "checkpoints" / name / "weights/model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="all 2 checkpoints are damaged"):
        newest(run, alone)


def test_manifest_that_names_a_file_outside_is_damaged(run) -> None:
    manifest = run / "checkpoints" / LAST / MANIFEST
    fields = json.loads(manifest.read_text())
    fields["files"]["../../../etc/passwd"] = [1, "0"]
    manifest.write_text(json.dumps(fields))
    seal(manifest.parent)
    with pytest.raises(DamagedCheckpoint, match="outside the checkpoint"):
        read_manifest(manifest.parent)


def carry_on(run: Path, alone: World, weight: float, total: int = 16) -> None:
    """Train the toy with a discriminator of ``weight`` in this process: ZeRO-1, one checkpoint."""
    schema = toy_trainable.ToyTraining(run=str(run))
    schema.adversarial.weight = weight
    for key in ("total_samples", "checkpoint_every", "preview_every"):
        setattr(schema.training, key, total)
    schema.training.zero_stage = 1
    run.mkdir(exist_ok=True)
    Trainer(toy_trainable.build_trainable(schema), schema.training, run, alone).run(StopRequest())


@pytest.mark.parametrize(
    ("begun", "now", "complaint"),
    [
        (0.1, 0.0, "holds a discriminator; a run without one cannot resume from it"),
        (0.0, 0.1, "holds no discriminator; a run with one cannot resume from it"),
    ],
)
def test_checkpoint_with_a_discriminator_fits_only_a_run_with_one(
    tmp_path, alone, restored_handlers, begun: float, now: float, complaint: str
) -> None:
    carry_on(tmp_path / "run", alone, begun)
    with pytest.raises(UserError, match=complaint):
        carry_on(tmp_path / "run", alone, now, total=32)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)

    def make(self, folder: Path, name: str) -> None:
        """Put it into the file ``name`` of a checkpoint, with a manifest that fits, as an attacker would."""
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(self, protocol=2))
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/byteorder", "little")
        content, fields = (folder / name).read_bytes(), json.loads((folder / MANIFEST).read_text())
        fields["files"][name] = [len(content), hashlib.sha256(content).hexdigest()]
        (folder / MANIFEST).write_text(json.dumps(fields))
        seal(folder)


def test_discriminator_that_would_run_code_is_refused(tmp_path, alone, restored_handlers) -> None:
    carry_on(tmp_path / "run", alone, 0.1)
    folder = tmp_path / "run/checkpoints/step-000000000016"
    Evil(tmp_path / "proof").make(folder, "discriminator/zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(UserError, match=r"discriminator/.*not loaded.*mkdir"):
        carry_on(tmp_path / "run", alone, 0.1, total=32)
    assert not (tmp_path / "proof").exists()


def test_checkpoint_that_would_run_code_is_refused(run, forks, tmp_path) -> None:
    folder, proof = run / "checkpoints" / LAST, tmp_path / "proof"
    Evil(proof).make(folder, "engine/mp_rank_00_model_states.pt")
    status, said = forks(2, "train", f"run={run}", *EVERY_STEP, "training.total_samples=320")
    assert status != 0
    assert "mkdir" in said
    assert "not loaded" in said
    assert not proof.exists()


@pytest.mark.parametrize(
    ("override", "processes", "complaint"),
    [
        ("training.zero_stage=0", 2, "was written with training.zero_stage=2; it must be 1, 2 or 3"),
        ("training.precision=bf16", 2, "was started with training.precision=fp32, not bf16"),
    ],
)
def test_checkpoint_that_does_not_fit_is_refused_in_one_line(run, forks, override, processes, complaint) -> None:
    status, said = forks(processes, "train", f"run={run}", *EVERY_STEP, "training.total_samples=320", override)
    assert status == 2
    assert complaint in said


def test_run_does_not_resume_with_other_data(run, forks) -> None:
    manifest = run / "checkpoints" / LAST / MANIFEST
    fields = json.loads(manifest.read_text())
    fields["inputs"] = {"noise": "of another set"}
    manifest.write_text(json.dumps(fields))
    seal(manifest.parent)
    status, said = forks(2, "train", f"run={run}", *EVERY_STEP, "training.total_samples=320")
    assert status == 2
    assert "was trained on other noise; give the same, or another run=" in said
