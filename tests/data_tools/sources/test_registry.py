"""Kinds of sources: their options, and the doors for those of other packages."""

import dataclasses
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_tools.config import Preparation
from data_tools.shard import main
from data_tools.sources import SourceKind, SourceOptions, Video, open_source, read_options, register, registry
from data_tools.sources.folder import FolderOptions
from mmldm_scale import config
from mmldm_scale.common.errors import UserError
from mmldm_scale.shards.manifest import Manifest


@dataclass
class PrefixOptions(SourceOptions):
    kind: str = "prefix"
    prefix: str = ""


class PrefixSource:
    """A source outside the package: the videos of a folder whose names begin with a prefix."""

    def __init__(self, options: PrefixOptions, folder: Path) -> None:
        self.folder, self.sound_folder = folder, None
        self._prefix = options.prefix

    def videos(self) -> list[Video]:
        files = sorted(path.relative_to(self.folder) for path in self.folder.rglob(f"{self._prefix}*.mp4"))
        return [Video(str(file), origin=str(file)) for file in files]


PREFIX = SourceKind("prefix", PrefixOptions, PrefixSource)


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "SOURCES", dict(registry.SOURCES))


@pytest.mark.parametrize("door", ["register", "entry point"])
def test_a_source_from_outside_is_used_by_the_command(
    own_registry, door, monkeypatch, good_videos, overrides, tmp_path, capsys
):
    if door == "register":
        register(PREFIX)
    else:
        point = importlib.metadata.EntryPoint("prefix", f"{__name__}:PREFIX", registry.ENTRY_POINTS)
        monkeypatch.setattr(importlib.metadata.EntryPoint, "load", lambda _: PREFIX)
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    output = tmp_path / "set"
    command = ["clips", "--source", "prefix", "--input", str(good_videos), "--output", str(output), "--workers", "0"]
    assert main([*command, "source.prefix=b", *overrides]) == 0
    manifest = Manifest.read(output)
    assert manifest.videos == 1
    assert manifest.preparation["source"] == {
        "kind": "prefix",
        "split": "",
        "audio_stream": None,
        "prefix": "b",
    }
    assert main([*command, "source.prefix=b", *overrides]) == 0
    assert main([*command, "source.prefix=a", *overrides]) == 2
    assert "source.prefix: begun with 'b', now 'a'" in capsys.readouterr().err
    assert main(["repair", "--input", str(output), "--workers", "0"]) == 0


def test_a_name_is_registered_once(own_registry):
    register(PREFIX)
    with pytest.raises(ValueError, match="'prefix' is registered already"):
        register(PREFIX)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="source.kind=youtube: must be one of folder, audioset, landscape, aist"):
        read_options({"kind": "youtube"})


@pytest.mark.parametrize("kind", ["folder", "audioset", "landscape", "aist"])
def test_options_are_kept_by_a_configuration(kind):
    preparation = config.load(Preparation, [], [f"source.kind={kind}"])
    assert preparation.source.kind == kind
    stored = dataclasses.asdict(preparation)
    assert config.restore(Preparation, stored, "plan") == preparation
    assert f"kind: {kind}" in config.dump(preparation)
    assert open_source(preparation.source, Path()).sound_folder is None


def test_plans_that_hold_the_settings_of_all_kinds_are_read():
    """As all plans did before each kind had its own options."""
    stored = {"kind": "folder", "include": [], "exclude": [], "ontology": "", "label_names": "", "label": "genre"}
    assert read_options({**stored, "music": "", "split": "train", "list": ""}) == FolderOptions(split="train")


def test_mistakes_name_the_key():
    with pytest.raises(UserError, match="source.include: only for source.kind=audioset, not for aist"):
        read_options({"kind": "aist", "include": ["Music"]})
    with pytest.raises(UserError, match="prefx: unknown key.*keys here: kind, split"):
        read_options({"kind": "folder", "prefx": "a"})
    with pytest.raises(UserError, match="source: 3: must be settings"):
        read_options(3)
    assert read_options({"list": "selection.csv", "include": ["Music"]}) == FolderOptions(list="selection.csv")
