"""What ``--print-config`` prints: a configuration as YAML, with the comment of each key.

Keys without a value are printed as ``???``. :func:`mmldm_scale.config.load` reads the text back.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from mmldm_scale.config.comments import comments
from mmldm_scale.config.compose import compose, missing_keys, read, to_object

INDENT = "  "


def render(schema: type, files: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> str:
    """Compose a configuration as :func:`mmldm_scale.config.load` does, and return it as YAML with comments.

    Keys that must be set may be missing.

    Raises:
        UserError: as ``load``, except for missing keys.
    """
    sources = read(schema, files, overrides)
    config = compose(schema, sources)
    if not missing_keys(schema, config):
        config = OmegaConf.structured(to_object(schema, config, sources))
    else:  # what is complete is checked all the same
        for name, part in nested(schema).items():
            if not missing_keys(part, config[name]):
                to_object(part, config[name], sources)
    return "\n".join(_lines(schema, config, "")) + "\n"


def nested(schema: type) -> dict[str, type]:
    """Return those fields of ``schema`` that are dataclasses themselves, each with its class."""
    types = {field.name: field.type for field in dataclasses.fields(schema)}
    return {name: kind for name, kind in types.items() if isinstance(kind, type) and dataclasses.is_dataclass(kind)}


def _lines(schema: type, config: DictConfig, indent: str) -> Iterator[str]:
    says, parts = comments(schema), nested(schema)
    for field in dataclasses.fields(schema):
        comment = f"  # {says[field.name]}" if says.get(field.name) else ""
        if field.name in parts:
            yield f"{indent}{field.name}:{comment}"
            yield from _lines(parts[field.name], config[field.name], indent + INDENT)
        else:
            yield from _with_comment(field.name, config, comment, indent)


def _with_comment(name: str, config: DictConfig, comment: str, indent: str) -> Iterator[str]:
    """Yield the lines of a key with a plain value; text may take several lines, and ends in the last."""
    value: Any = MISSING if OmegaConf.is_missing(config, name) else config[name]
    lines = OmegaConf.to_yaml(OmegaConf.create({name: value})).splitlines()
    place = -1 if isinstance(value, str) else 0
    lines[place] += comment
    yield from (indent + line for line in lines)
