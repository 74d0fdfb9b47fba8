"""A URL where a path is needed is refused in one line that names the option or key, and makes no folder."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools import shard
from mmldm_scale import cli
from mmldm_scale.common.addresses import is_url

URL = "s3://bucket/x"
TRAINING = ("kl_vae=x", "shards=x")
PREPARATION = ("--input", "videos", "--output", "out")
LATENTS = (*PREPARATION, "--autoencoder", "x")
SAMPLE = ("sample", "--task", "svg", "--num-samples", "1", "--checkpoint", "x", "--output", "out")
RECONSTRUCT = ("reconstruct", "--checkpoint", "x", "--input", "x", "--num-samples", "1", "--output", "out")
ABLATION = ("ablation", "--input", "x", "--num-samples", "1", "--output", "out", *TRAINING)
SETS = ("--samples", "x", "--reference", "x", "--protocol", "packaged", "--output", "out")
EVALUATE_RUN = ("evaluate-run", "x", "--reference", "x", "--protocol", "packaged")
COMPARED = ("--samples", "x", "--training", "x", "--held-out", "x", "--output", "out")
MEMORISATION = ("memorisation", *COMPARED, "--protocol", "packaged", "--extractor", "transnetv2")
KEYS = {  # by command: the keys of its configuration that are paths
    ("train", "dit", *TRAINING[1:]): ("run", "init", "reading.stage", "preview.autoencoder"),
    ("train", "dit", *TRAINING[1:], "context.kind=text"): ("context.embeddings",),
    ("train", "autoencoder", *TRAINING): ("run", "init", "kl_vae", "unet", "reading.stage"),
    ("train", "kl_vae", *TRAINING[1:]): ("run", "kl_vae", "lpips"),
    ("train", "decoder-distil", *TRAINING[1:], "autoencoder=x"): ("run",),
    ("train", "decoder-distil", *TRAINING[1:]): ("autoencoder",),
    ("launch", "train", "dit", "--tasks-per-node", "1", *TRAINING[1:]): ("run",),
    ("plan", "--model", "S", "--gpu", "a800"): ("init",),
    ("doctor", "shards=x"): ("run", "init"),
    SAMPLE: ("vocoder", "text_encoder"),
    RECONSTRUCT: ("vocoder", "lpips"),
    ABLATION: ("unet",),
}
OPTIONS = {  # by command: its options that are paths
    SAMPLE: ("--checkpoint", "--output", "--input", "--autoencoder", "--prompts", "--config"),
    RECONSTRUCT: ("--checkpoint", "--input", "--output", "--config"),
    ABLATION: ("--variants", "--config", "--finetune", "--reconstruct", "--evaluate", "--input", "--output"),
    ("evaluate", *SETS): ("--samples", "--reference", "--output", "--config"),
    EVALUATE_RUN: ("--reference", "--input", "--autoencoder", "--sampling", "--config"),
    ("evaluate-run", *EVALUATE_RUN[2:]): ("folder",),
    MEMORISATION: ("--samples", "--training", "--held-out", "--output", "--config"),
    ("table", "1", "--data", "x", "--output", "out"): ("--data", "--output", "--config"),
    ("export", "--checkpoint", "x", "--output", "out"): ("--checkpoint", "--autoencoder", "--vocoder"),
    ("doctor",): ("--run", "--weights", "--config"),
    ("train", "dit"): ("--config",),
    ("launch", "train", "dit"): ("--config",),
    ("plan", "--gpu", "a800"): ("--config", "--run"),
    ("model-info",): ("--config", "--run"),
    ("status",): ("runs",),
    ("gallery", "--output", "x.html"): ("folders",),
    ("gallery", "x"): ("--output",),
    ("seams",): ("folder",),
    ("follow", "--to", "wandb"): ("folder",),
}
SHARD_KEYS = {
    ("clips", *PREPARATION): ("source.list",),
    ("clips", *PREPARATION, "--source", "audioset"): ("source.list", "source.ontology"),
    ("clips", *PREPARATION, "--source", "aist"): ("source.music",),
    ("clips", *PREPARATION, "--source", "landscape"): ("source.list",),
    ("clips", *PREPARATION, "--source", "vggsound"): ("source.list",),
    ("clips", *PREPARATION, "--source", "webdataset"): ("source.list",),
    ("measure", *PREPARATION): ("source.list",),
}
SHARD_OPTIONS = {
    ("all", *LATENTS): ("--input", "--list", "--config", "--autoencoder", "--work"),
    ("clips", *PREPARATION): ("--input", "--list", "--config", "--work"),
    ("latents", *LATENTS): ("--input", "--autoencoder", "--work"),
    ("import-latents", *LATENTS): ("--input", "--autoencoder", "--statistics", "--work"),
    ("measure", *PREPARATION): ("--input", "--output", "--list", "--config"),
    ("select", *PREPARATION): ("--input", "--output", "--config"),
    ("verify", "--input", "x"): ("--input",),
    ("repair", "--input", "x"): ("--input",),
    ("stats", "--input", "x"): ("--input", "--output"),
}
Main = Callable[[list[str]], int]


def _cases(main: Main, table: dict[tuple[str, ...], tuple[str, ...]], with_url: Callable[[str], list[str]]) -> list:
    return [
        pytest.param(main, [*command, *with_url(name)], name, id=f"{command[0]} {name}")
        for command, names in table.items()
        for name in names
    ]


def _option(name: str) -> list[str]:
    return [name, URL] if name.startswith("-") else [URL]


def _key(name: str) -> list[str]:
    return [f"{name}={URL}"]


@pytest.mark.parametrize(
    ("main", "arguments", "name"),
    [
        *_cases(cli.main, OPTIONS, _option),
        *_cases(cli.main, KEYS, _key),
        *_cases(shard.main, SHARD_OPTIONS, _option),
        *_cases(shard.main, SHARD_KEYS, _key),
        pytest.param(cli.main, ["launch", "train", "dit", "--slurm", f"{URL}.yaml", "shards=x"], "--slurm", id="slurm"),
    ],
)
def test_a_url_is_no_path(main: Main, arguments: list[str], name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"{name}: {URL}" in error
    assert "must be a path, not a URL; URLs are allowed in " in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_every_option_that_is_a_path_is_in_the_table() -> None:
    for parser, *tables in ((cli.parser(), OPTIONS), (shard._parser(), SHARD_OPTIONS)):
        commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
        for command, options in commands.items():
            in_tables = {
                name for table in tables for words, names in table.items() if words[0] == command for name in names
            }
            paths = {
                (action.option_strings or [action.dest])[0]
                for action in options._actions
                if action.metavar in ("DIR", "FILE", "PATH", "RUN") and not _takes_urls(command, action)
            }
            assert paths == in_tables, command


def _takes_urls(command: str, action: argparse.Action) -> bool:
    written = ("export", "all", "clips", "latents", "import-latents")
    return action.dest == "shards" or (action.dest == "output" and command in written)


@pytest.mark.parametrize("text", ["runs/x", "s3:/x", "c:x", ""])
def test_paths_are_no_urls(text: str) -> None:
    assert not is_url(text)
