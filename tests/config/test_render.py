"""``--print-config``: every key with its comment, also where keys are not set yet, and it reads back."""

from dataclasses import dataclass, field

import pytest

from mmldm_scale import config
from mmldm_scale.cli import main
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import presets
from mmldm_scale.config.comments import comments, split_unit
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.registry import TRAINABLES


@dataclass
class Parent:
    first: int = 1  # [samples] the first
    second: str = "a # b"
    # A line above,
    # another one,
    third: list[str] = field(default_factory=lambda: ["#"])  # and the end


@dataclass
class Child(Parent):
    second: str = "c"  # now with a comment
    first: int = 2


def test_the_comments_of_fields() -> None:
    assert comments(Parent) == {
        "first": "[samples] the first",
        "second": "",
        "third": "A line above, another one, and the end",
    }
    assert comments(Child) == {**comments(Parent), "second": "now with a comment"}
    assert split_unit("[samples] the first") == ("samples", "the first")
    assert split_unit("the first") == ("", "the first")


@pytest.mark.parametrize("name", TRAINABLES)
def test_nothing_need_be_set_and_what_is_missing_is_marked(name: str, capsys) -> None:
    assert main(["train", name, "--print-config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"trainable: {name}  # ")
    assert any(line.startswith("shards: ???  # ") for line in lines)


@pytest.mark.parametrize("name", TRAINABLES)
def test_it_reads_back(name: str, tmp_path) -> None:
    schema, file = TRAINABLES[name].schema(), tmp_path / "c.yaml"
    file.write_text(config.render(schema))
    needed = [f"{key}=x" for key in ("kl_vae", "autoencoder") if key in schema.__dataclass_fields__]
    overrides = ["shards=[a,b]", *needed]
    assert config.load(schema, [file], overrides) == config.load(schema, [], overrides)


def test_text_that_yaml_would_read_otherwise_reads_back(tmp_path) -> None:
    said = (
        "two words # no comment, and so many more that a line of YAML would have been broken somewhere before this: end"
    )
    overrides = ["shards=['1e-4','yes','a b']", f"preview.autoencoder={said!r}", "training.deepspeed.a.b=[1,{c: 2}]"]
    file = tmp_path / "c.yaml"
    file.write_text(config.render(DiTTraining, [presets.path("dit/L")], overrides))
    loaded = config.load(DiTTraining, [file])
    assert loaded == config.load(DiTTraining, [presets.path("dit/L")], overrides)
    assert loaded.preview.autoencoder == said


def test_a_mistake_is_one_line_although_keys_are_missing() -> None:
    with pytest.raises(UserError, match="training.micro_batch: 3: must divide global_batch = 128"):
        config.render(AutoencoderTraining, [], ["training.micro_batch=3"])
