"""The registry of trainables, and trainables of other packages: by entry point or by ``register``."""

from pathlib import Path

import pytest

from mmldm_scale import config
from mmldm_scale.cli import main
from mmldm_scale.common.errors import UserError
from mmldm_scale.trainables import registry
from mmldm_scale.trainables.registry import TRAINABLES, register, registered

PACKAGE = """
from dataclasses import dataclass, field

from mmldm_scale.config import ShardTraining, TrainingConfig
from mmldm_scale.trainables.registry import Registration


@dataclass
class ToyTraining(ShardTraining):
    trainable: str = "toy"
    run: str = "runs/toy"
    noise: float = 0.1  # standard deviation of the target's noise
    training: TrainingConfig = field(default_factory=TrainingConfig)


RECORD = Registration(
    name="toy",
    schema_path="toy_package:ToyTraining",
    build_path="toy_package:build",
    outline_path="toy_package:outline",
    shards="latents",
    weights="toy",
    weights_prefix="toy.",
)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with the trainable "toy", and two entry points that are wrong; returns its folder."""
    (tmp_path / "toy_package.py").write_text(PACKAGE)
    metadata = tmp_path / "toy_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy_package\nVersion: 1.0\n")
    points = ["toy = toy_package:RECORD", "other = toy_package:RECORD", "gone = toy_package:nothing"]
    (metadata / "entry_points.txt").write_text("\n".join([f"[{registry.ENTRY_POINTS}]", *points, ""]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "TRAINABLES", dict(TRAINABLES))
    return tmp_path


def test_an_installed_package_adds_a_trainable(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert registry.names() == ["kl_vae", "autoencoder", "decoder-distil", "dit", "gone", "other", "toy"]
    assert main(["train", "toy", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("trainable: toy")
    assert "noise: 0.1  # standard deviation of the target's noise\n" in printed


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other", "toy_package:RECORD must be a Registration named other"),
        ("gone", "toy_package:nothing cannot be imported"),
        ("none", "must be one of kl_vae, autoencoder, decoder-distil, dit, gone, other, toy"),
    ],
)
def test_a_wrong_entry_point_is_refused_in_one_line(package: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        registered(name)
    assert "\n" not in str(error.value)


def test_a_registered_name_cannot_be_registered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "TRAINABLES", dict(TRAINABLES))
    with pytest.raises(ValueError, match="'dit' is registered already"):
        register(TRAINABLES["dit"])


def test_a_configuration_without_the_key_loads_and_one_of_another_trainable_does_not() -> None:
    for name, record in TRAINABLES.items():
        schema = record.schema()
        needed = {"autoencoder": ["kl_vae=x"], "decoder-distil": ["autoencoder=x"]}
        overrides = ["shards=x", *needed.get(name, [])]
        assert config.load(schema, [], overrides).trainable == name
        assert next(iter(schema.__dataclass_fields__)) == "trainable"
        with pytest.raises(UserError, match=f"trainable: gan, but this is `mmldm train {name}`"):
            config.load(schema, [], [*overrides, "trainable=gan"])
