"""Composition of the configuration, and one clear line for each mistake."""

import dataclasses
import os
import re
from pathlib import Path

import pytest

from data_tools.config import Preparation, Selection
from mmldm_scale import config
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import Sampling, presets
from mmldm_scale.config.evaluating import Evaluating
from mmldm_scale.evaluation.ablation import Ablation
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.registry import TRAINABLES


def test_later_files_and_overrides_win(tmp_path) -> None:
    (tmp_path / "a.yaml").write_text("shards: x\nmodel: {depth: 3}\ntraining: {seed: 1, learning_rate: 1e-3}\n")
    (tmp_path / "b.yaml").write_text("training: {seed: 2}\n")
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    loaded = config.load(DiTTraining, files, ["model.width=64", "model.heads=4"])
    assert (loaded.model.depth, loaded.model.width, loaded.training.seed) == (3, 64, 2)
    assert loaded.training.learning_rate == pytest.approx(1e-3)


def test_printed_configuration_reads_back_the_same(tmp_path) -> None:
    loaded = config.load(DiTTraining, [], ["shards=x", "training.deepspeed.zero_optimization.overlap_comm=true"])
    (tmp_path / "c.yaml").write_text(config.dump(loaded))
    assert config.load(DiTTraining, [tmp_path / "c.yaml"]) == loaded


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("model: {dept: 3}", "model.dept: unknown key; did you mean 'depth'?"),
        ("modle: {depth: 3}", "modle: unknown key; did you mean 'model'?"),
        ("model: {depth: deep}", "model.depth: Value 'deep' of type 'str' could not be converted to Integer"),
        ("model: {attention: fast}", "model.attention: Invalid value 'fast', expected one of"),
        ("model: 3", "int is not a subclass of DiTConfig"),
        ("model: {width: 100, heads: 3}", "model.heads: 3: must divide model.width = 100"),
        ("training: {micro_batch: 48}", "training.micro_batch: 48: must divide global_batch = 128"),
        (
            "training: {log_every: 200}",
            "training.log_every: 200: must be a multiple of global_batch = 128, such as 256",
        ),
        ("training: {ema_lengths: [0.05, 0.05]}", "[0.05, 0.05]: must be one or more different numbers in 0.001..0.28"),
        ("training: {ema_lengths: [0.3]}", "training.ema_lengths: [0.3]: must be one or more different numbers"),
        ("training: {ema_lengths: []}", "training.ema_lengths: []: must be one or more different numbers"),
        ("training: {ema_snapshot_every: 200}", "training.ema_snapshot_every: 200: must be a multiple of global_batch"),
        (
            "training: {keep_every: 200000}",
            "training.keep_every: 200000: must be a multiple of checkpoint_every = 128000, such as 25",
        ),
        ("training: {keep_every: -128000}", "training.keep_every: -128000: must be at least 0"),
        ("training: {checkpoint_every: 0}", "training.checkpoint_every: 0: must be at least 1"),
        ("training: {workers: -1}", "training.workers: -1: must lie in 0..1024"),
        ("training: {seed: 99999999999999999999999}", "training.seed: 1e+23: must lie in 0..9.22337e+18"),
        ("training: {betas: [1, 1]}", "training.betas: [1.0, 1.0]: must be two numbers in 0..1, and less than 1"),
        ("training: {learning_rate: .inf}", "training.learning_rate: inf: must be greater than 0, and finite"),
        ("training: {collective_timeout: 0}", "training.collective_timeout: 0: must be greater than 0, and finite"),
        ("model: {depth: 1000000}", "model.depth: 1e+06: must lie in 1..1000"),
        ("training: {zero_stage: 5}", "expected one of [0, 1, 2, 3]"),
        ("training: {offload_optimizer: true, zero_stage: 0}", "needs zero_stage 1, 2 or 3"),
        ("diffusion: {audio_conditioned: 0.8, video_conditioned: 0.5}", "must lie in 0..1"),
        ("a: b: c", "not valid YAML"),
        ("- 1", "incompatible container types"),
        ("- " * 200_000, "lists and mappings in one another, more than 100 deep"),
        ("training: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_mistake_is_one_line_naming_file_key_and_what_fits(tmp_path, text: str, complaint: str) -> None:
    file = tmp_path / "mistake.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        config.load(DiTTraining, [file], ["shards=x"])
    assert complaint in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("class_guidance=-1", "class_guidance: -1.0: must be a number of at least 0"),
        ("audio_guidance=.nan", "audio_guidance: nan: must be a number of at least 0"),
        ("guidance_interval=[0.5,0.5]", "[0.5, 0.5]: must be [low, high] with 0 <= low < high <= 1"),
        ("guidance_interval=[0,1.5]", "guidance_interval: [0.0, 1.5]: must be [low, high]"),
        ("guidance_interval=[0.3]", "guidance_interval: [0.3]: must be [low, high]"),
    ],
)
def test_guidance_that_cannot_be_meant_is_refused(override: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        config.load(Sampling, [], [override])
    loaded = config.load(Sampling, [], ["class_guidance=0", "guidance_interval=[0,1]"])
    assert (loaded.class_guidance, loaded.guidance_interval) == (0.0, [0.0, 1.0])


@pytest.mark.parametrize(
    "value", ["x #3", "0123", "on", "1e3", "12:30:00", "null", "a: b", "{a", "~", "ä", "x=y", "no"]
)
def test_a_text_stays_what_was_typed(tmp_path: Path, value: str) -> None:
    loaded = config.load(DiTTraining, [], [f"run={value}", f"shards={value}", f"preview.autoencoder={value}"])
    assert (loaded.run, loaded.shards, loaded.preview.autoencoder) == (value, [value], value)
    (tmp_path / "printed.yaml").write_text(config.dump(loaded))
    assert config.load(DiTTraining, [tmp_path / "printed.yaml"]) == loaded
    (tmp_path / "rendered.yaml").write_text(config.render(DiTTraining, [], [f"run={value}", f"shards={value}"]))
    assert config.load(DiTTraining, [tmp_path / "rendered.yaml"]).run == value


def test_texts_in_lists_quotes_and_null() -> None:
    loaded = config.load(DiTTraining, [], ["run='a b'", "shards=[0123, on,/data/x y]"])
    assert (loaded.run, loaded.shards) == ("a b", ["0123", "on", "/data/x y"])
    assert config.load(Sampling, [], ["vocoder=null"]).vocoder is None
    assert config.load(Sampling, [], ["vocoder=on"]).vocoder == "on"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("run: 0123", "83"), ("run: on", "true"), ("preview: {autoencoder: 5}", "5"), ("shards: [a, on]", "true")],
)
def test_a_text_that_yaml_takes_for_another_value_is_one_line(tmp_path: Path, text: str, shown: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"weights: [1]\n{text}\n")
    key = "preview.autoencoder" if text.startswith("preview") else text.partition(":")[0]
    with pytest.raises(UserError, match=f"^{file}: {key}: must be a text, but is {shown} in YAML; put it in quotes$"):
        config.load(DiTTraining, [file])


def test_a_file_that_may_not_be_read_is_called_so(tmp_path) -> None:
    file, me = tmp_path / "secret.yaml", os.geteuid()
    file.write_text("seed: 1")
    file.chmod(0)
    if me == 0:  # who may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=f"^{file}: cannot be read: Permission denied$"):
            config.load(DiTTraining, [file], ["shards=x"])
    finally:
        os.seteuid(me)


def test_missing_value_missing_file_and_malformed_override() -> None:
    with pytest.raises(UserError, match="shards: not set; give shards=VALUE"):
        config.load(DiTTraining)
    with pytest.raises(UserError, match="nowhere.yaml: no such configuration file"):
        config.load(DiTTraining, ["nowhere.yaml"])
    with pytest.raises(UserError, match="has the form key.sub=value"):
        config.load(DiTTraining, [], ["shards"])


def test_a_reference_that_leads_nowhere_is_one_line() -> None:
    with pytest.raises(UserError, match="run: Interpolation key 'nowhere' not found") as error:
        config.load(DiTTraining, [], ["shards=x", "run=${nowhere}"])
    assert "\n" not in str(error.value)


def test_one_set_or_several(tmp_path: Path) -> None:
    one = config.load(DiTTraining, [], ["shards=data/a"])
    assert (one.shards, one.weights) == (["data/a"], [])
    (tmp_path / "a.yaml").write_text("shards: data/a\n")
    assert config.load(DiTTraining, [tmp_path / "a.yaml"], ["weights=2"]).weights == [2.0]
    several = config.load(AutoencoderTraining, [], ["shards=[data/a,s3://b/c]", "weights=[1,2.5]", "kl_vae=x"])
    assert (several.shards, several.weights) == (["data/a", "s3://b/c"], [1.0, 2.5])
    (tmp_path / "b.yaml").write_text(config.dump(several))
    assert config.load(AutoencoderTraining, [tmp_path / "b.yaml"]) == several


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["shards=[]"], "shards: \\[\\]: must name at least one set"),
        (["shards=[a,a]"], "shards: .'a', 'a'.: must name each set once"),
        (["shards=a", "weights=[1,2]"], "weights: .1.0, 2.0.: must be 1 numbers, one for each set, or none"),
        (["shards=[a,b]", "weights=[1,0]"], "weights: .*: must be greater than 0"),
        (["shards=[a,b]", "weights=[1,.inf]"], "weights: .*: must be greater than 0, and finite"),
        (["shards=a", "weights=x"], r"weights\[0\]: Value 'x' of type 'str' could not be converted to Float"),
        (["shards=a", "reading.window=0"], "reading.window: 0: must be at least 1 shard"),
        (["shards=a", "reading.damaged_share=2"], "reading.damaged_share: 2: must be in 0..1"),
    ],
)
def test_sets_that_cannot_be_meant_are_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        config.load(DiTTraining, [], overrides)


PRESETS = [f"{folder}/{name}" for folder in presets.folders() for name in presets.names(folder)]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid(preset: str) -> None:
    folder, name = preset.split("/")
    trained = {name: record.schema() for name, record in TRAINABLES.items()}
    schemas: dict[str, list[type]] = {
        **{name: [schema] for name, schema in trained.items()},
        "data": [Selection if name == "audioset_select" else Preparation],
        "sample": [config.Sampling],
        "evaluate": [Evaluating],
        "ablation": [Ablation],
        "cluster": [AutoencoderTraining] if name.endswith("_autoencoder") else list(trained.values()),
    }
    for schema in schemas[folder]:
        keys = {f.name for f in dataclasses.fields(schema)}
        paths = [f"{name}=x" for name in ("shards", "kl_vae") if name in keys]
        config.load(schema, [presets.path(preset)], paths)
