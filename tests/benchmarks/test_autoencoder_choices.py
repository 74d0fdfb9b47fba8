"""The comparison of the autoencoder's choices; the commands that it runs are replaced by ones that write results."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import autoencoder_choices as choices
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import load
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining


def options(folder: Path, *more: str) -> list[str]:
    paths = {"shards": "clips", "held-out": "others", "kl-vae": "vae", "runs": "runs"}
    given = [part for key, name in paths.items() for part in (f"--{key}", str(folder / name))]
    return [*given, "--samples", "1200", "--num-samples", "3", "--output", str(folder / "results.json"), *more]


class Commands:
    """In the place of ``mmldm``: notes its arguments and writes what a finished command would have written."""

    def __init__(self, runs: Path) -> None:
        self.runs, self.called = runs, []

    def __call__(self, arguments: list[str]) -> int:
        self.called.append(arguments)
        if arguments[0] == "ablation":
            for number, name in enumerate(choices.VARIANTS):
                self.train(name, psnr=20.0 + number)
        else:
            scale = float(next(a for a in arguments if "video_guidance" in a).partition("=")[2])
            write(Path(arguments[arguments.index("--output") + 1]), psnr=20.0 - scale)
        return 0

    def train(self, name: str, psnr: float) -> None:
        weights = self.runs / name / "checkpoints/step-000000001200/weights"
        weights.mkdir(parents=True, exist_ok=True)
        (weights / "config.json").write_text('{"kind": "autoencoder"}')
        write(self.runs / name / "reconstruction/step-000000001200", psnr)
        records = [
            {"samples_seen": 600 * n, "time": n, "validation/loss/audio": 1 / n, "discriminator/accuracy": 0.5 * n}
            for n in (1, 2)
        ]
        (self.runs / name / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def write(folder: Path, psnr: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reconstruction.json").write_text(json.dumps({"metrics": {"psnr": psnr}, "ceiling": {"psnr": 30.0}}))


def test_variants_are_trained_measured_and_guided_once(tmp_path, monkeypatch):
    commands = Commands(tmp_path / "runs")
    monkeypatch.setattr(choices.cli, "main", commands)
    assert choices.main(options(tmp_path)) == 0
    assert [call[0] for call in commands.called] == ["ablation"] + ["reconstruct"] * len(choices.GUIDANCE)
    results = json.loads((tmp_path / "results.json").read_text())
    assert {name: row["metrics"]["psnr"] for name, row in results["variants"].items()} == {
        name: 20.0 + number for number, name in enumerate(choices.VARIANTS)
    }
    assert results["ceiling"] == {"psnr": 30.0}
    assert {scale: row["psnr"] for scale, row in results["guidance"].items()} == {
        f"{scale:g}": 20.0 - scale for scale in (1, 1.25, 1.5, 2, 2.5, 3)
    }
    assert results["variants"]["base"]["held_out"] == [
        {"samples_seen": 600, "validation/loss/audio": 1.0},
        {"samples_seen": 1200, "validation/loss/audio": 0.5},
    ]
    assert [row["discriminator/accuracy"] for row in results["variants"]["base"]["discriminator"]] == [0.5, 1.0]
    commands.called.clear()
    assert choices.main(options(tmp_path)) == 0
    assert [call[0] for call in commands.called] == ["ablation"]  # which repeats nothing that is done
    assert json.loads((tmp_path / "results.json").read_text())["guidance"] == results["guidance"]


def test_each_variant_differs_from_the_base_in_one_setting(tmp_path):
    args = choices._parser().parse_args(options(tmp_path, "--no-estimate"))
    common = choices.settings(args)
    flat = {
        name: dict(_leaves(asdict(load(AutoencoderTraining, [choices.PRESET], [*common, *changes]))))
        for name, changes in choices.VARIANTS.items()
    }
    base = flat.pop("base")
    changed = {name: [key for key in base if row[key] != base[key]] for name, row in flat.items()}
    assert changed == {
        "projectors_attached": ["model.detach_projectors"],
        "features_on_skips": ["model.decoder.features"],
        "no_discriminator": ["adversarial.weight"],
    }
    assert (base["model.decoder.estimate"], base["training.total_samples"], base["adversarial.after"]) == (
        False,
        1200,
        400,
    )
    with pytest.raises(UserError, match="training.total_samples: 1201"):
        choices.settings(choices._parser().parse_args([*options(tmp_path), "--samples", "1201"]))


def _leaves(tree: dict, prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_a_curve_has_means_of_consecutive_records_that_have_its_tags():
    records = [{"samples_seen": n, "a": float(n)} | ({"b": 1.0} if n == 4 else {}) for n in range(5)]
    assert choices.curve([*records, {"samples_seen": 9, "c": 1.0}], ["a", "b"], points=2) == [
        {"samples_seen": 1, "a": 0.5},
        {"samples_seen": 4, "a": 3.0, "b": 1.0},
    ]
    assert choices.curve(records, ["c"]) == []
