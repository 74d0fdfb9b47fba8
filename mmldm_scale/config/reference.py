"""Writes docs/reference.md, every configuration key with type, default, unit and meaning, from the dataclasses.

    python -m mmldm_scale.config.reference > docs/reference.md    # or: make docs

The meaning of a key is the comment of its field (:mod:`mmldm_scale.config.comments`). The classes are named as text
because most of them belong to packages that import this one; run it where the preparation of data is importable, too.
"""

import dataclasses
import importlib
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from mmldm_scale.config.comments import comments, split_unit


@dataclasses.dataclass(frozen=True)
class Section:
    """A table of the page.

    Attributes:
        title: its heading.
        user: what reads these keys.
        schema: "module:class" of its dataclass.
        prefix: what its keys begin with.
    """

    title: str
    user: str
    schema: str
    prefix: str = ""


SECTIONS = (
    Section("Training a DiT", "`mmldm train dit`", "mmldm_scale.trainables.dit.config:DiTTraining"),
    Section(
        "Training an autoencoder",
        "`mmldm train autoencoder`",
        "mmldm_scale.trainables.autoencoder.config:AutoencoderTraining",
    ),
    Section("Training a KL-VAE", "`mmldm train kl_vae`", "mmldm_scale.trainables.kl_vae.config:KLVAETraining"),
    Section("Sampling", "`mmldm sample`", "mmldm_scale.config.sampling:Sampling"),
    Section("Reconstruction", "`mmldm reconstruct`", "mmldm_scale.config.sampling:Reconstructing"),
    Section("Variants of an ablation", "`mmldm ablation --variants`", "mmldm_scale.evaluation.ablation:Ablation"),
    Section("SLURM request of a training", "`mmldm launch --slurm`", "mmldm_scale.launch.launch:TrainingRequest"),
    Section("Preparing shards", "`shard.py clips` and `all`", "data_tools.config:Preparation"),
    *(
        Section(f"Source {kind}", f"`--source {kind}`", f"data_tools.sources.{kind}:{name}", "source.")
        for kind, name in (
            ("folder", "FolderOptions"),
            ("audioset", "AudioSetOptions"),
            ("landscape", "LandscapeOptions"),
            ("aist", "AISTOptions"),
            ("vggsound", "VGGSoundOptions"),
            ("webdataset", "WebDatasetOptions"),
        )
    ),
    Section("Measuring videos", "`shard.py measure`", "data_tools.config:MeasureConfig"),
    Section("Selecting videos", "`shard.py select`", "data_tools.config:Selection"),
    Section("SLURM request of a preparation", "`shard.py --slurm`", "mmldm_scale.cluster.submit:JobRequest"),
)
HEAD = """\
# Reference of the configuration

Every key of every configuration. Set a key in a YAML file (`--config`) or on the command line, `training.seed=1`;
`mmldm train dit --print-config` prints a composed configuration with the same comments. A default of `???` has to be
set; `null` stands for no value. `make docs` writes this page from the comments in the code; change them there.
"""


def page() -> str:
    """Return the page in Markdown."""
    contents = "\n".join(f"- [{section.title}](#{_anchor(section.title)}): {section.user}" for section in SECTIONS)
    return "\n".join([HEAD, f"{contents}\n", *map(_table, SECTIONS)])


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


if __name__ == "__main__":
    print(page(), end="")
