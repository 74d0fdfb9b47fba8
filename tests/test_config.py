"""Composition of the configuration, and one clear line for each mistake."""

import dataclasses
from pathlib import Path

import pytest

from mmldm_scale import config
from mmldm_scale.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"


def test_later_files_and_overrides_win(tmp_path) -> None:
    (tmp_path / "a.yaml").write_text("shards: x\nmodel: {depth: 3}\ntraining: {seed: 1, learning_rate: 1e-3}\n")
    (tmp_path / "b.yaml").write_text("training: {seed: 2}\n")
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    loaded = config.load(config.DiTTraining, files, ["model.width=64", "model.heads=4"])
    assert (loaded.model.depth, loaded.model.width, loaded.training.seed) == (3, 64, 2)
    assert loaded.training.learning_rate == pytest.approx(1e-3)


def test_printed_configuration_reads_back_the_same(tmp_path) -> None:
    loaded = config.load(config.DiTTraining, [], ["shards=x", "training.deepspeed.zero_optimization.overlap_comm=true"])
    (tmp_path / "c.yaml").write_text(config.dump(loaded))
    assert config.load(config.DiTTraining, [tmp_path / "c.yaml"]) == loaded


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("model: {dept: 3}", "model.dept: unknown key; did you mean 'depth'?"),
        ("modle: {depth: 3}", "modle: unknown key; did you mean 'model'?"),
        ("model: {depth: deep}", "model.depth: Value 'deep' of type 'str' could not be converted to Integer"),
        ("model: {attention: fast}", "model.attention: Invalid value 'fast', expected one of"),
        ("model: 3", "int is not a subclass of DiTConfig"),
        ("model: {width: 100, heads: 3}", "model.heads: must divide model.width = 100"),
        ("training: {micro_batch: 48}", "training.micro_batch: 48 does not divide global_batch = 128"),
        ("training: {log_every: 200}", "training.log_every: 200 is no multiple of global_batch = 128; 256 fits"),
        ("training: {zero_stage: 5}", "expected one of [0, 1, 2, 3]"),
        ("training: {offload_optimizer: true, zero_stage: 0}", "needs zero_stage 1, 2 or 3"),
        ("diffusion: {audio_conditioned: 0.8, video_conditioned: 0.5}", "must lie in 0..1"),
        ("a: b: c", "not valid YAML"),
        ("- 1", "incompatible container types"),
        ("training: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_mistake_is_one_line_naming_file_key_and_what_fits(tmp_path, text: str, complaint: str) -> None:
    file = tmp_path / "mistake.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        config.load(config.DiTTraining, [file], ["shards=x"])
    assert complaint in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_value_missing_file_and_malformed_override() -> None:
    with pytest.raises(UserError, match="shards: not set; give shards=VALUE"):
        config.load(config.DiTTraining)
    with pytest.raises(UserError, match="nowhere.yaml: no such configuration file"):
        config.load(config.DiTTraining, ["nowhere.yaml"])
    with pytest.raises(UserError, match="has the form key.sub=value"):
        config.load(config.DiTTraining, [], ["shards"])


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.relative_to(CONFIGS).as_posix())
def test_every_shipped_file_is_valid(file: Path) -> None:
    schemas = {
        "data": [config.Preparation],
        "dit": [config.DiTTraining],
        "sample": [config.Sampling],
        "cluster": [config.DiTTraining, config.AutoencoderTraining, config.KLVAETraining],
        "autoencoder": [config.KLVAETraining if file.name.startswith("kl_vae") else config.AutoencoderTraining],
    }
    for schema in schemas[file.parent.name]:
        keys = {f.name for f in dataclasses.fields(schema)}
        paths = [f"{name}=x" for name in ("shards", "kl_vae") if name in keys]
        config.load(schema, [file], paths)
