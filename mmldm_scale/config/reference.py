"""Writes docs/reference/, every configuration key with type, default, unit and meaning, from the dataclasses.

    python -m mmldm_scale.config.reference docs/reference    # or: make docs

The meaning of a key is the comment of its field (:mod:`mmldm_scale.config.comments`). The classes are named as text
because most of them belong to packages that import this one; run it where the preparation of data is importable, too.
"""

import dataclasses
import importlib
import re
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from mmldm_scale.config.comments import comments, split_unit


@dataclasses.dataclass(frozen=True)
class Section:
    """A table of a page.

    Attributes:
        page: name of its page, without the suffix.
        title: its heading.
        user: what reads these keys.
        schema: "module:class" of its dataclass.
        prefix: what its keys begin with.
    """

    page: str
    title: str
    user: str
    schema: str
    prefix: str = ""


SECTIONS = (
    Section("train_dit", "Training a DiT", "`mmldm train dit`", "mmldm_scale.trainables.dit.config:DiTTraining"),
    Section(
        "train_autoencoder",
        "Training an autoencoder",
        "`mmldm train autoencoder`",
        "mmldm_scale.trainables.autoencoder.config:AutoencoderTraining",
    ),
    Section(
        "train_kl_vae",
        "Training a KL-VAE",
        "`mmldm train kl_vae`",
        "mmldm_scale.trainables.kl_vae.config:KLVAETraining",
    ),
    Section(
        "train_decoder_distil",
        "Distilling a signal decoder",
        "`mmldm train decoder-distil`",
        "mmldm_scale.trainables.decoder_distil.config:DecoderDistilTraining",
    ),
    Section("sample", "Sampling", "`mmldm sample`", "mmldm_scale.config.sampling:Sampling"),
    Section("evaluate", "Evaluation", "`mmldm evaluate`", "mmldm_scale.config.evaluating:Evaluating"),
    Section(
        "evaluate",
        "Protocol",
        "`mmldm evaluate --protocol FILE`",
        "mmldm_scale.evaluation.protocols.protocol:Protocol",
    ),
    Section("evaluate", "Reconstruction", "`mmldm reconstruct`", "mmldm_scale.config.sampling:Reconstructing"),
    Section(
        "evaluate",
        "Variants of an ablation",
        "`mmldm ablation --variants`",
        "mmldm_scale.evaluation.ablation:Ablation",
    ),
    Section("evaluate", "Tables", "`mmldm table`", "mmldm_scale.config.evaluating:MakingTables"),
    Section(
        "evaluate",
        "Definition of a table",
        "`mmldm table FILE`",
        "mmldm_scale.evaluation.tables.definition:TableDefinition",
    ),
    Section("prepare", "Preparing shards", "`shard.py clips` and `all`", "data_tools.config:Preparation"),
    Section("prepare", "Measuring videos", "`shard.py measure`", "data_tools.config:MeasureConfig"),
    Section("prepare", "Selecting videos", "`shard.py select`", "data_tools.config:Selection"),
    *(
        Section("sources", f"Source {kind}", f"`--source {kind}`", f"data_tools.sources.{kind}:{name}", "source.")
        for kind, name in (
            ("folder", "FolderOptions"),
            ("audioset", "AudioSetOptions"),
            ("landscape", "LandscapeOptions"),
            ("aist", "AISTOptions"),
            ("vggsound", "VGGSoundOptions"),
            ("webdataset", "WebDatasetOptions"),
        )
    ),
    Section(
        "slurm",
        "SLURM request of a training",
        "`mmldm launch --slurm`",
        "mmldm_scale.launch.launch:TrainingRequest",
    ),
    Section(
        "slurm",
        "SLURM request of a preparation",
        "`shard.py --slurm`",
        "mmldm_scale.cluster.submit:JobRequest",
    ),
)
TITLES = {
    "train_dit": "Settings of a DiT's training",
    "train_autoencoder": "Settings of an autoencoder's training",
    "train_kl_vae": "Settings of a KL-VAE's training",
    "train_decoder_distil": "Settings of a signal decoder's distillation",
    "sample": "Settings of sampling",
    "evaluate": "Settings of evaluation",
    "prepare": "Settings of data preparation",
    "sources": "Settings of the sources of videos",
    "slurm": "Requests to SLURM",
}
INDEX = "README"
HEAD = """\
# Reference of the configuration

Every key of every configuration. Set a key in a YAML file (`--config`) or on the command line, `training.seed=1`;
`mmldm train dit --print-config` prints a composed configuration with the same comments. A default of `???` has to be
set; `null` stands for no value. `make docs` writes these pages from the comments in the code; change them there.
"""


def pages() -> dict[str, str]:
    """Return each page in Markdown by the name of its file."""
    written = {f"{INDEX}.md": f"{HEAD}\n{_contents(SECTIONS, INDEX)}\n"}
    for page, title in TITLES.items():
        sections = [section for section in SECTIONS if section.page == page]
        written[f"{page}.md"] = "\n".join([f"# {title}\n", f"{_contents(sections, page)}\n", *map(_table, sections)])
    return written


def _contents(sections: Sequence[Section], on_page: str) -> str:
    """Return a list of links to ``sections`` for the page of that name."""
    return "\n".join(f"- [{section.title}]({_place(section, on_page)}): {section.user}" for section in sections)


def _place(section: Section, on_page: str) -> str:
    page = "" if section.page == on_page else f"{section.page}.md"
    return f"{page}#{_anchor(section.title)}"


def _table(section: Section) -> str:
    schema = _resolve(section.schema)
    intro = _first_paragraph(schema)
    intro = intro if section.user in intro else f"{section.user}: {intro}"
    rows = "\n".join(_rows(schema, schema, section.prefix))
    head = "| key | type | default | unit | meaning |\n|---|---|---|---|---|"
    return f"## {section.title}\n\n{intro}\n\n{head}\n{rows}\n"


def _rows(schema: type, defaults: Any, prefix: str) -> Iterator[str]:
    """Yield a table row for each key of ``schema``; ``defaults``: an instance of it, or the class itself."""
    says, kinds = comments(schema), typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kind, key = kinds[field.name], f"{prefix}{field.name}"
        default = getattr(defaults, field.name) if not isinstance(defaults, type) else _default(field)
        unit, meaning = split_unit(says[field.name])
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield f"| **{key}** | | | | {_escape(meaning or _first_paragraph(kind))} |"
            yield from _rows(kind, default, f"{key}.")
        else:
            cells = (f"`{key}`", _type(kind), f"`{_value(default)}`", unit, meaning)
            yield f"| {' | '.join(map(_escape, cells))} |"
            for part in get_args(kind):  # the entries of a list or dict of dataclasses
                if isinstance(part, type) and dataclasses.is_dataclass(part):
                    yield from _rows(part, part, f"{key}.*.")


def _first_paragraph(schema: type) -> str:
    """Return the first paragraph of a docstring as one line of Markdown."""
    line = " ".join((schema.__doc__ or "").split("\n\n")[0].split())
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", line).replace("``", "`")


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _type(kind: Any) -> str:
    """Return a type as a reader of YAML understands it: "int", "list of int", "`a` or `b`"."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Literal, Union, types.UnionType):
        *most, last = [f"`{part}`" if origin is Literal else _type(part) for part in parts]
        return f"{', '.join(most)} or {last}" if most else last
    if origin is list:
        return f"list of {_type(parts[0])}"
    if origin is tuple:
        return f"{len(parts)} × {_type(parts[0])}"
    if origin is dict:
        return f"mapping to {_type(parts[1])}"
    return {Any: "any", type(None): "null"}.get(kind, getattr(kind, "__name__", str(kind)))


def _value(value: Any) -> str:
    """Return a default as it is written in YAML."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    return '""' if value == "" else f"{value:g}" if isinstance(value, float) else str(value)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _resolve(place: str) -> type:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def write(folder: Path) -> None:
    """Write the pages to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
