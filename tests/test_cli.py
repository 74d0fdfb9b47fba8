"""The command line: what it prints, and a mistake as one line with status 2."""

from pathlib import Path

import pytest

from mmldm_scale.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"


def test_composed_configuration_is_printed_and_nothing_started(tmp_path, capsys) -> None:
    run = tmp_path / "run"
    file = str(CONFIGS / "dit/S.yaml")
    assert main(["train", "dit", f"run={run}", "--print-config", "shards=x", "--config", file]) == 0
    printed = capsys.readouterr().out
    assert f"run: {run}" in printed
    assert "depth: 12" in printed
    assert not run.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train", "dit", "shards=x", "model.dept=3"], "did you mean 'depth'?"),
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
