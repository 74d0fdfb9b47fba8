"""The configurations with which a run's folder can be started and resumed."""

import json
import sys
import time
from pathlib import Path

import pytest
import yaml

from mmldm_scale import config
from mmldm_scale.cluster import code_snapshot
from mmldm_scale.cluster.local_launcher import COMMAND
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import load
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.kl_vae.config import KLVAETraining
from mmldm_scale.training import run_folder
from mmldm_scale.training.loop import Trainer
from mmldm_scale.training.resilience.signals import StopRequest
from mmldm_scale.training.trainable import StepInfo
from tests.support.toy_trainable import ToyTraining, build_trainable


def begin(folder: Path, world, *overrides: str) -> str:
    """Start or resume the run in ``folder``; return the configuration that it then has."""
    folder.mkdir(exist_ok=True)  # as the lock does
    schema = load(ToyTraining, overrides=[f"run={folder}", *overrides])
    run_folder.begin(folder, schema, world)
    run_folder.check(folder, schema)
    return (folder / "config.yaml").read_text()


@pytest.mark.parametrize("trace", ["log.jsonl", "checkpoints/step-000000000064/manifest.json"])
def test_a_run_with_a_log_or_checkpoint_resumes_only_with_the_same_settings(tmp_path, alone, trace) -> None:
    begun = begin(tmp_path, alone, "noise=0.2")
    (tmp_path / trace).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / trace).write_text('{"samples_seen": 16, "time": 1.0, "loss": 1.0}\n')
    for overrides, message in (
        (["noise=0.3"], "noise=0.2, not 0.3"),
        (["noise=0.2", "training.seed=1"], "training.seed=0"),
    ):
        with pytest.raises(UserError, match=f"^{tmp_path}/config.yaml: the run was started with {message}"):
            begin(tmp_path, alone, *overrides)
        with pytest.raises(UserError, match=message):
            run_folder.check(tmp_path, load(ToyTraining, overrides=[f"run={tmp_path}", *overrides]))
    assert begin(tmp_path, alone, "noise=0.2", "training.total_samples=320", "training.micro_batch=8") == begun


def test_each_start_is_recorded_with_its_code_and_its_command(tmp_path, alone, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/mmldm", "train", "toy", "noise=0.2", "run=a b"])
    begin(tmp_path, alone)
    begin(tmp_path, alone)
    records = [json.loads(line) for line in (tmp_path / "commands.jsonl").read_text().splitlines()]
    assert len(records) == 2
    assert records[0]["code"] == code_snapshot.origin()
    assert (records[0]["command"], records[0]["processes"]) == ("mmldm train toy noise=0.2 'run=a b'", 1)
    line = f"{tmp_path}: {code_snapshot.origin()}; command: mmldm train toy noise=0.2 'run=a b'\n"
    assert capsys.readouterr().err.count(line) == 2
    monkeypatch.setenv(COMMAND, "mmldm train toy --processes 2 run=x")  # as the launcher of several processes does
    begin(tmp_path, alone)
    assert "; command: mmldm train toy --processes 2 run=x\n" in capsys.readouterr().err


def test_data_may_be_moved_once_a_checkpoint_knows_it_by_its_fingerprint(tmp_path: Path) -> None:
    def schema(shards: str) -> DiTTraining:
        return load(DiTTraining, overrides=[f"run={tmp_path}", f"shards={shards}"])

    (tmp_path / "config.yaml").write_text(config.dump(schema("sets/latents")))
    (tmp_path / "log.jsonl").write_text('{"samples_seen": 16, "time": 1.0}\n')
    with pytest.raises(UserError, match="was started with shards="):
        run_folder.check(tmp_path, schema("/moved/latents"))
    (tmp_path / "checkpoints/step-000000000016").mkdir(parents=True)
    for place in ("/moved/latents", "sets/latents/", "sets/latents"):
        run_folder.check(tmp_path, schema(place))


SCHEMAS = {"dit": DiTTraining, "kl_vae": KLVAETraining, "autoencoder": AutoencoderTraining}
OF_VERSION_1 = ("version",)  # what its configurations lack
OF_VERSION_0 = ("version", "init", "loss_weights")


def resume_earlier(run: Path, name: str, lacking: tuple[str, ...], before: list[str], now: list[str]) -> None:
    """Check that a run of ``name``, begun with ``before`` and without the keys ``lacking``, resumes with ``now``."""
    fixed = [f"run={run}", "shards=sets", *(["kl_vae=weights"] if name == "autoencoder" else [])]
    stored = yaml.safe_load(config.dump(load(SCHEMAS[name], overrides=[*fixed, *before])))
    (run / "checkpoints/step-000000000016").mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in stored.items() if k not in lacking}))
    run_folder.check(run, load(SCHEMAS[name], overrides=[*fixed, *now]))


@pytest.mark.parametrize(
    ("name", "before", "without", "now"),
    [
        ("kl_vae", ["adversarial.loss=hinge"], (), ["adversarial.loss=hinge_linear"]),
        ("dit", [], ("posterior",), ["posterior=draw"]),
        ("dit", ["posterior=mode"], (), ["posterior=mode"]),
        ("dit", ["model.continuation=true"], (), ["model.continuation=true", "posterior=mode"]),
    ],
)
def test_an_earlier_run_resumes_with_what_its_settings_meant(tmp_path: Path, name, before, without, now) -> None:
    resume_earlier(tmp_path, name, (*OF_VERSION_0, *without), before, now)
    for key, value in (setting.split("=") for setting in now if "model." not in setting):
        other = {"hinge_linear": "hinge", "draw": "mode", "mode": "draw"}[value]
        with pytest.raises(UserError, match=f"the run was started with {key}={value}, not {other}; set the same value"):
            resume_earlier(tmp_path, name, (*OF_VERSION_0, *without), before, [*now, f"{key}={other}"])


def test_hinge_of_a_later_run_is_hinge(tmp_path: Path) -> None:
    for lacking in ((), OF_VERSION_1):
        resume_earlier(tmp_path, "kl_vae", lacking, ["adversarial.loss=hinge"], ["adversarial.loss=hinge"])


@pytest.mark.parametrize("lacking", [OF_VERSION_0, OF_VERSION_1])
@pytest.mark.parametrize(
    "settings", [["contrastive.weight=0.5"], ["model.continuation=true", "diffusion.continued=0.5"]]
)
def test_an_earlier_run_whose_samples_were_others_is_refused(tmp_path: Path, lacking, settings) -> None:
    message = (
        f"^{tmp_path}: was begun by an earlier version of the program, in which {settings[-1]} meant something else"
    )
    with pytest.raises(UserError, match=f"{message}; .* begin another run= with its weights: init={tmp_path}$"):
        resume_earlier(tmp_path, "dit", lacking, settings, settings)
    resume_earlier(tmp_path, "dit", (), settings, settings)


def test_an_autoencoder_whose_loss_was_another_is_refused(tmp_path: Path) -> None:
    resume_earlier(tmp_path, "autoencoder", OF_VERSION_1, [], [])
    text = (tmp_path / "config.yaml").read_text()
    assert "condition_dropout: 0.1\n" in text
    (tmp_path / "config.yaml").write_text(text.replace("condition_dropout", "context_dropout"))
    schema = load(AutoencoderTraining, overrides=[f"run={tmp_path}", "shards=sets", "kl_vae=weights"])
    with pytest.raises(UserError, match=r"dropout \(context_dropout\) of autoencoders meant something else; resume it"):
        run_folder.check(tmp_path, schema)


def test_a_run_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    resume_earlier(tmp_path, "dit", (), [], [])
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("\nversion: 2\n", "\nversion: 3\n"))
    schema = load(DiTTraining, overrides=[f"run={tmp_path}", "shards=sets"])
    with pytest.raises(UserError, match=r"a newer version of the program \(version=3 in its config.yaml, here 2"):
        run_folder.check(tmp_path, schema)
    with pytest.raises(UserError, match="version: 3: must be 2, this program's; leave it out"):
        load(DiTTraining, overrides=[f"run={tmp_path}", "shards=sets", "version=3"])


def test_a_start_that_failed_before_its_first_step_does_not_fix_the_settings(tmp_path, alone) -> None:
    begin(tmp_path, alone, "noise=0.2")
    (tmp_path / "log.jsonl").touch()  # opened, and then there was too little memory
    (tmp_path / "checkpoints").mkdir()
    assert "noise: 0.3" in begin(tmp_path, alone, "noise=0.3")


def test_a_start_that_is_refused_leaves_no_run(tmp_path: Path, alone) -> None:
    schema = load(ToyTraining, overrides=[f"run={tmp_path}"])
    with pytest.raises(UserError, match="no such shards"), run_folder.begun(tmp_path, schema, alone):
        raise UserError(f"no such shards, {(tmp_path / 'config.yaml').read_text()}")
    assert list(tmp_path.iterdir()) == []
    begin(tmp_path, alone)
    with pytest.raises(UserError), run_folder.begun(tmp_path, schema, alone):
        raise UserError("no such shards")
    assert (tmp_path / "config.yaml").is_file()  # of an earlier start


@pytest.mark.parametrize("log", ["", '{"samples_seen": 16, "time": 1.0}\n'])
def test_the_run_of_another_trainable_is_named(tmp_path: Path, alone, log: str) -> None:
    schemas = {
        name: load(schema, overrides=[f"run={tmp_path}", "shards=x"])
        for name, schema in (("dit", DiTTraining), ("kl_vae", KLVAETraining))
    }
    run_folder.begin(tmp_path, schemas["kl_vae"], alone)
    (tmp_path / "log.jsonl").write_text(log)
    with pytest.raises(UserError, match=f"^{tmp_path}: is a run of `mmldm train kl_vae`, not of dit; set another run="):
        run_folder.begin(tmp_path, schemas["dit"], alone)


@pytest.mark.parametrize("text", ["noise: 0.3\n", "- not ours\n", "{", ""])
def test_a_configuration_of_somebody_elses_is_not_replaced(tmp_path: Path, alone, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=f"^{tmp_path}/config.yaml: was not written by this program; move it away"):
        begin(tmp_path, alone)
    assert (tmp_path / "config.yaml").read_text() == text


def test_checkpoints_without_their_configuration_are_not_resumed(tmp_path: Path, alone) -> None:
    (tmp_path / "checkpoints/step-000000000016").mkdir(parents=True)
    with pytest.raises(UserError, match=f"^{tmp_path}/config.yaml: missing; copy it from the run that its checkpoints"):
        begin(tmp_path, alone)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, alone) -> None:
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(UserError, match=f"^{tmp_path}: cannot be used as a run folder: "):
        begin(tmp_path, alone)


OURS = (
    "checkpoints/step-000000000064.tmp/engine/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "ema/step-000000000064-0.08.safetensors.0123abcd.tmp",
    "log.jsonl.0123abcd.tmp",
    "preview.tmp/model.safetensors",
    "quarantine/0123abcd-clip_7.json.0123abcd.tmp",
)
NOT_OURS = (
    "checkpoints/step-64.tmp",
    "checkpoints/step-000000000064-best.tmp",
    "checkpoints/mine.tmp/file",
    "checkpoints/step-000000000064/engine/step-000000000128.tmp",
    "ema/averages.tmp",
    "notes.tmp",
)


def test_what_killed_jobs_left_unfinished_is_removed_and_nothing_else(tmp_path, alone, capsys) -> None:
    begin(tmp_path, alone)
    for name in (*OURS, *NOT_OURS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    begin(tmp_path, alone)
    remaining = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert remaining == {*NOT_OURS, "config.yaml", "commands.jsonl"}
    removed = "step-000000000064.tmp, step-000000000064-0.08.safetensors.0123abcd.tmp, "
    assert f"{tmp_path}: removed what killed jobs have left unfinished: {removed}" in capsys.readouterr().err
    begin(tmp_path, alone)
    assert "removed" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda run, elsewhere: run.rename(elsewhere / "moved"), "was moved away or removed"),
        (lambda run, elsewhere: run.unlink() or run.symlink_to(elsewhere), "leads to another folder than at this job"),
    ],
)
def test_a_run_whose_folder_is_exchanged_ends_with_one_line_and_writes_nowhere_else(
    tmp_path, alone, restored_handlers, change, says
) -> None:
    folder, elsewhere, run = tmp_path / "folder", tmp_path / "elsewhere", tmp_path / "run"
    folder.mkdir()
    elsewhere.mkdir()
    run.symlink_to(folder)
    schema = load(ToyTraining, overrides=[f"run={run}", "training.log_every=16", "training.checkpoint_every=32"])
    trainable = build_trainable(schema)

    def begin_step(info: StepInfo) -> None:
        if info.samples_seen == 48:
            while not (folder / "newest_checkpoint").exists():  # written last
                time.sleep(0.01)
            change(run, elsewhere)
        usual(info)

    usual, trainable.begin_step = trainable.begin_step, begin_step
    with pytest.raises(UserError, match=f"^{run}: {says}"):
        Trainer(trainable, schema.training, run, alone).run(StopRequest())
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000000000032"]
    assert (folder / "log.jsonl").read_text().count("\n") == 3
    assert run.is_symlink() != (elsewhere / "moved").is_symlink()
    assert [path.name for path in elsewhere.iterdir() if path.name != "moved"] == []
