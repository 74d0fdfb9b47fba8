"""The command line: what it prints, and a mistake as one line with status 2."""

import ast
import io
import re
import subprocess
import sys

import pytest

import data_tools.sources.folder  # noqa: F401  (the tests' user may not read Python's own folder)
from data_tools import shard
from mmldm_scale import cli
from mmldm_scale.cli import main
from mmldm_scale.common.errors import LostContact
from mmldm_scale.runs import status
from tests.support.rights import without_rights


def test_composed_configuration_is_printed_and_nothing_started(tmp_path, capsys) -> None:
    run = tmp_path / "run"
    assert main(["train", "dit", f"run={run}", "--print-config", "shards=x", "--preset", "S"]) == 0
    printed = capsys.readouterr().out
    assert f"run: {run}" in printed
    assert "depth: 12" in printed
    assert not run.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train", "dit", "shards=x", "model.dept=3"], "did you mean 'depth'?"),
        (
            ["train", "dit", "--preset", "XL"],
            "preset 'XL': must be one of B, L, S, audio, demo, ",
        ),
        (["train", "dit", "shards=x", "run="], "run: '': must name a folder"),
        (["train", "dit", "shards="], "shards: ['']: each must name a folder or a URL"),
        (["trian", "dit"], "trian: no such command; did you mean train?\n"),
        (["videos"], "videos: no such command; must be one of train, launch, "),
        (["train", "gan", "shards=x"], "trainable 'gan': must be one of kl_vae, autoencoder, decoder-distil, dit\n"),
        (["train", "dit", "shards=x", "trainable=kl_vae"], "trainable: kl_vae, but this is `mmldm train dit`"),
        (
            ["train", "dit", "--preset", "S", "--flip", "0"],
            "--flip: no such option; settings have the form key=value, ",
        ),
        (["train", "dit", "--warmup-samples=8"], "without dashes: training.warmup_samples=8\n"),
        (["train", "dit", "--learning-rate", "--processes", "2"], ": training.learning_rate=VALUE\n"),
        (["train", "dit", "shards=x", "learning_rate=3"], "did you mean 'training.learning_rate'?"),
        (["train", "dit", "shards=x"], "no configuration given: --preset NAME, of B, L, S, audio, demo, landscape, "),
        (["doctor", "--trainable", "gan", "shards=x"], "trainable 'gan': must be one of"),
        (["train", "dit", "--config", "nowhere.yaml"], "no such configuration file"),
        (["train", "autoencoder", "shards=x"], "kl_vae: not set"),
        (["sample", "--checkpoint", "nowhere", "--task", "svg", "--num-samples", "1", "--output", "out"], "nowhere"),
        (["export", "--checkpoint", "nowhere", "--output", "out"], "nowhere: no such folder; must be a run"),
        (["reconstruct", "--checkpoint", "x", "--input", "none", "--num-samples", "1", "--output", "out"], "none: no"),
    ],
)
def test_mistake_is_one_line(arguments, complaint, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.startswith("mmldm: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", [(main, "status"), (shard.main, "clips", "--input", ".", "--output")])
def test_a_path_that_the_file_system_refuses_is_one_line(command, capfd, tmp_path) -> None:
    refused = tmp_path / "refused"
    refused.mkdir()
    (refused / "config.yaml").write_text("")

    def call() -> int:
        run, *words = command
        return run([*words, str(refused)])

    assert without_rights(call, refused) == 2
    error = capfd.readouterr().err
    assert re.fullmatch(rf"(mmldm|shard\.py): {refused}/\S+: Permission denied\n", error)


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_processes_are_at_least_one(number: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["train", "dit", "shards=x", "--processes", number])
    assert f"argument --processes: {number}: must be a whole number, at least 1" in capsys.readouterr().err


def test_what_a_locale_cannot_show_is_escaped(monkeypatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["train", "dit", "--print-config", "shards=ü"]) == 0
    terminal.flush()
    assert b"\\xfc" in terminal.buffer.getvalue()  # type: ignore[attr-defined]


def test_lost_contact_is_one_line_with_status_1(capsys, monkeypatch) -> None:
    def lose(args: object, queued_jobs: object) -> int:
        raise LostContact("Connection closed by peer\n[127.0.0.1]:1234")

    monkeypatch.setattr(cli, "LOST_CONTACT_WAIT", 0.0)
    monkeypatch.setattr(status, "run", lose)
    assert main(["status", "run"]) == 1
    line = "mmldm: rank 0 has lost contact with another rank: Connection closed by peer [127.0.0.1]:1234\n"
    assert capsys.readouterr().err == line


def test_help_and_parsing_load_no_large_library() -> None:
    code = "import sys; from mmldm_scale.cli import parser; parser().format_help(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "deepspeed", "submitit", "transformers"} & set(ast.literal_eval(done.stdout))
