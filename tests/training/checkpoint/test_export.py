"""``mmldm export``: the exported weights are the trained ones bit for bit; anything else is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import load_file

import mmldm_scale
from mmldm_scale.cli import main
from mmldm_scale.cluster.code_snapshot import code_version
from mmldm_scale.common import provenance
from mmldm_scale.models import pretrained
from mmldm_scale.training.checkpoint import ema_snapshots
from mmldm_scale.training.engine.deepspeed_engine import averaged_state, base_optimizer
from mmldm_scale.training.engine.ema import AveragingProfile, exponent
from mmldm_scale.training.loop import Trainer
from mmldm_scale.training.resilience.signals import StopRequest
from tests.support import toy_trainable
from tests.training.checkpoint.test_manager import LAST, Evil

TRAINED = {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """Run the command with some options; return its status and the folder."""

    def run(checkpoint: Path, *options: str, name: str = "out") -> tuple[int, Path]:
        output = tmp_path / name
        return main(["export", "--checkpoint", str(checkpoint), "--output", str(output), *options]), output

    return run


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def raw(run: Path, end: int) -> dict[str, torch.Tensor]:
    """Return the weights after the step that ends at ``end``, of a run in float32 with ZeRO-2."""
    file = run / f"checkpoints/step-{end:012d}/engine/mp_rank_00_model_states.pt"
    return torch.load(file, weights_only=True)["module"]


def test_without_options_the_weights_folder_is_exported(undisturbed, export, capsys, tmp_path) -> None:
    (tmp_path / "out.tmp").mkdir()  # somebody else's
    status, folder = export(undisturbed.run)
    assert status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.tmp"}
    inside = undisturbed.run / "checkpoints" / LAST / "weights"
    assert pretrained.fingerprint(folder) == pretrained.fingerprint(inside)
    version = code_version()
    assert capsys.readouterr().out.splitlines()[:3] == [
        f"{folder}: dit, averaged, as in the checkpoint",
        "  160 samples seen, averaged with length 0.1",
        "  trained on toys (1,000 samples, 0123456789ab…), noise none…",
    ]
    stored = provenance.read(folder)
    assert stored == provenance.Provenance(
        160, 0.1, [{"name": "toys", "samples": 1000, "fingerprint": "0123456789abcdef"}], {"noise": "none"}, version
    )
    assert version["version"] == mmldm_scale.__version__
    assert export(folder, name="again")[0] == 0
    assert contents(tmp_path / "again") == contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("options", [[], ["--weights", "raw"], ["--ema", "0.2"]], ids=["default", "raw", "other"])
def test_an_export_has_its_origin_no_path_and_the_same_bytes_again(
    undisturbed, export, tmp_path, capsys, options: list[str]
) -> None:
    _, folder = export(undisturbed.run, *options)
    _, again = export(undisturbed.run, *options, name="again")
    assert contents(folder) == contents(again)
    capsys.readouterr()
    assert main(["status", str(folder)]) == 0
    lengths = {"": "averaged with length 0.1", "--weights": "as trained", "--ema": "averaged with length 0.2"}
    shown = capsys.readouterr().out
    assert f"160 samples seen, {lengths[options[0] if options else '']}" in shown
    assert "toys (1,000 samples, 0123456789ab…)" in shown
    pretrained.verify(folder)
    inside = undisturbed.run / "checkpoints" / LAST / "weights"
    for name, content in [*contents(folder).items(), *contents(inside).items()]:
        for place in (tmp_path, undisturbed.run, Path.home(), Path.cwd()):
            assert str(place).encode() not in content, name


def test_a_url_gets_the_same_files(undisturbed, export, capsys, monkeypatch) -> None:
    store, url = fsspec.filesystem("memory"), "memory://export/weights"
    command = ["export", "--checkpoint", str(undisturbed.run), "--output", url]
    store.pipe_file(f"{url}/model.safetensors", b"cut short")  # by an export that was stopped
    assert main(command) == 0
    assert capsys.readouterr().out.startswith(f"{url}: dit, averaged, as in the checkpoint\n  160 samples seen")
    _, folder = export(undisturbed.run)
    names = sorted(path.name for path in folder.iterdir())
    assert {name: store.cat_file(f"{url}/{name}") for name in names} == {n: (folder / n).read_bytes() for n in names}
    assert sorted(path.rpartition("/")[2] for path in store.find(url)) == names
    assert main(command) == 2
    assert f"--output: {url} holds exported weights" in capsys.readouterr().err
    store.rm(url, recursive=True)
    store.pipe_file(f"{url}/a.txt", b"mine")
    assert main(command) == 2
    assert f"--output: {url} holds other files (a.txt, …)" in capsys.readouterr().err


def test_raw_weights_of_two_processes_are_those_of_the_module(undisturbed, export) -> None:
    status, folder = export(undisturbed.run, "--weights", "raw")
    assert status == 0
    assert pretrained.read_config(folder, "dit") == {"width": toy_trainable.WIDTH}
    found, module = tensors(folder), raw(undisturbed.run, 160)
    assert found.keys() == {*TRAINED, "scale"}
    for name, value in found.items():
        assert torch.equal(value, module[name]), name


def test_second_average_is_the_integral_over_the_weights_of_all_steps(undisturbed, export) -> None:
    shares = torch.diff((torch.arange(11, dtype=torch.float64) / 10) ** (exponent(0.2) + 1))
    status, folder = export(undisturbed.run, "--ema", "0.2")
    assert status == 0
    for name in TRAINED:
        steps = [raw(undisturbed.run, end)[name].double() for end in range(16, 161, 16)]
        average = sum(share * step for share, step in zip(shares, steps, strict=True))
        torch.testing.assert_close(tensors(folder)[name].double(), average, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_gives_its_masters_and_averages_to_the_bit(
    tmp_path, alone, restored_handlers, export, stage: int, precision: str
) -> None:
    trainer = train(tmp_path / "run", alone, 48, zero_stage=stage, precision=precision)
    engine = trainer.engine
    parameters = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    if stage:
        masters = {name: safe_get_full_fp32_param(p) for name, p in parameters.items()}
    else:
        masters = dict(zip(parameters, base_optimizer(engine).param_groups[0]["params"], strict=True))
    averages = averaged_state(engine, alone, 0.2)
    _, trained = export(tmp_path / "run", "--weights", "raw", name="raw")
    _, averaged = export(tmp_path / "run", "--ema", "0.2", name="ema")
    for name in TRAINED:
        stored = tensors(trained)[name]
        assert torch.equal(stored, masters[name].detach().float().view(stored.shape)), name
        assert torch.equal(tensors(averaged)[name], averages[name]), name


def train(run: Path, alone, total: int, **settings) -> Trainer:
    """Train the toy in this process, with a checkpoint and snapshots after each step, of which 1 and all are kept."""
    schema = toy_trainable.ToyTraining(run=str(run))
    settings = {"ema_snapshot_every": 16, "checkpoint_every": 16, "keep_checkpoints": 1} | settings
    for key, value in ({"total_samples": total, "log_every": total, "preview_every": total} | settings).items():
        setattr(schema.training, key, value)
    run.mkdir(exist_ok=True)
    torch.manual_seed(0)
    trainer = Trainer(toy_trainable.build_trainable(schema), schema.training, run, alone)
    trainer.run(StopRequest())
    return trainer


@pytest.mark.parametrize("at", [320, 160])
def test_average_of_another_length_is_near_the_one_tracked(
    tmp_path, alone, restored_handlers, export, capsys, at: int
) -> None:
    """Against a run that differs in nothing but that it tracks that length; of ``at`` 160 no checkpoint is left."""
    train(tmp_path / "run", alone, 320)
    train(tmp_path / "other", alone, at, ema_lengths=[0.14])
    status, folder = export(tmp_path / "run", "--ema", "0.14", "--at", str(at))
    assert status == 0
    assert f"length 0.14 at {at} samples, combined from {at // 8} averages (error 0." in capsys.readouterr().out
    made, tracked = tensors(folder), tensors(tmp_path / f"other/checkpoints/step-{at:012d}/weights")
    nearest = load_file(ema_snapshots.find(tmp_path / "run", at)[AveragingProfile(at, 0.1)])
    for name in TRAINED:
        assert (made[name] - tracked[name]).norm() < 0.03 * (nearest[name] - tracked[name]).norm(), name


def test_average_that_snapshots_cannot_make_is_refused(tmp_path, alone, restored_handlers, export, capsys) -> None:
    train(tmp_path / "run", alone, 64, ema_snapshot_every=32)
    for options, complaint in (
        (["--ema", "0.01"], "--ema: 0.01 at 64 samples has an error of "),
        (["--ema", "0.15", "--at", "48"], "it must be nearer to one of the 2 averages of lengths 0.1, 0.2 up to 32"),
        (["--ema", "0.15", "--at", "16"], "--at: the run stored no average up to 16 samples"),
        (["--ema", "0.15", "--at", "80"], "--at: 80 must be from 1 to 64, the samples of the checkpoint"),
        (["--ema", "0.3"], "--ema: 0.3 must be from 0.001 to 0.28"),
        (["--ema", "0.1", "--weights", "raw"], "--ema: must be left out with --weights raw"),
        (["--at", "48"], "--at: needs --ema"),
    ):
        status, folder = export(tmp_path / "run", *options)
        assert status == 2
        assert complaint in capsys.readouterr().err
        assert not folder.exists()


def test_damage_is_reported_and_nothing_is_written(tmp_path, alone, restored_handlers, export, capsys) -> None:
    train(tmp_path / "run", alone, 64)
    step = tmp_path / "run/checkpoints/step-000000000064"
    snapshot = ema_snapshots.find(tmp_path / "run", 64)[AveragingProfile(32, 0.1)]
    weights, states = step / "weights/model.safetensors", step / "engine/zero_pp_rank_0_mp_rank_00_optim_states.pt"
    for file, options in ((snapshot, ["--ema", "0.15"]), (states, ["--weights", "raw"]), (weights, [])):
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
        capsys.readouterr()
        status, folder = export(tmp_path / "run", *options)
        assert status == 2
        message = capsys.readouterr().err
        assert file.name in message
        assert message.count("\n") == 1
        assert not folder.exists()


def test_checkpoint_that_would_run_code_is_refused(tmp_path, alone, restored_handlers, export, capsys) -> None:
    train(tmp_path / "run", alone, 16)
    step = tmp_path / "run/checkpoints/step-000000000016"
    Evil(tmp_path / "proof").make(step, "engine/zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert export(tmp_path / "run", "--weights", "raw")[0] == 2
    assert "mkdir" in capsys.readouterr().err
    assert not (tmp_path / "proof").exists()


def test_weights_folder_by_itself_has_nothing_else_to_export(undisturbed, tmp_path, export, capsys) -> None:
    shutil.copytree(undisturbed.run / "checkpoints" / LAST / "weights", tmp_path / "weights")
    assert export(tmp_path / "weights", "--weights", "raw")[0] == 2
    assert "is in no checkpoint" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    assert export(tmp_path / "weights")[0] == 0
    assert export(tmp_path / "weights")[0] == 2
    assert "out must be missing or an empty folder" in capsys.readouterr().err
