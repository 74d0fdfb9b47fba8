"""How a configuration is put together: defaults, YAML files in the order given, then ``key.sub=value`` overrides.

Whatever does not fit raises :class:`UserError` naming the source, the key and what would fit.
"""

import dataclasses
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmldm_scale.common.addresses import is_path_key, require_local
from mmldm_scale.common.errors import UserError

MAX_DEPTH = 100  # of what a configuration file nests

Schema = TypeVar("Schema")
Source = tuple[str, Any]  # what it is called in messages, and what it sets


def load(schema: type[Schema], files: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> Schema:
    """Compose defaults, YAML ``files`` (later ones win) and ``key=value`` ``overrides`` into a checked ``schema``.

    Raises:
        UserError: a file is missing or not valid YAML; a key is unknown, not set or of the wrong type; a value is out
            of its range, contradicts another, or is a URL where a path is needed.
    """
    sources = read(schema, files, overrides)
    return to_object(schema, compose(schema, sources), sources)


def restore(schema: type[Schema], values: dict[str, Any], name: str, prefix: str = "") -> Schema:
    """Return the ``schema`` whose ``dataclasses.asdict`` is ``values``; a UserError names ``name``.

    Args:
        prefix: of the keys in messages on their values.
    """
    sources = [(name, values)]
    return to_object(schema, compose(schema, sources), sources, prefix)


def read(schema: type, files: Sequence[str | Path], overrides: Sequence[str]) -> list[Source]:
    """Return what ``files`` and ``overrides`` set in ``schema``, in the order of their application; raise as ``load``.

    In an override, the value of a text is what stands after the "=", whatever it would be in YAML: ``run=0123``.
    """
    return [
        *((str(file), read_yaml(Path(file))) for file in files),
        *((f"{text!r:.200}", _parse_override(text, schema)) for text in overrides),
    ]


def compose(schema: type, sources: Sequence[Source]) -> DictConfig:
    """Return the defaults of ``schema`` with ``sources`` applied; keys may be missing; raise as :func:`load`."""
    config = OmegaConf.structured(schema)
    for name, part in sources:
        try:
            _check_texts(part, schema, name)
            config = OmegaConf.merge(config, _with_lists(part, schema))
        except (OmegaConfBaseException, TypeError) as error:
            raise UserError(f"{name}: {_explain(error, schema)}") from None
    return config


def missing_keys(schema: type, config: DictConfig) -> list[str]:
    """Return the keys of ``config`` that are not set; raise UserError if a reference to another key is wrong."""
    try:
        return sorted(OmegaConf.missing_keys(config))
    except OmegaConfBaseException as error:
        raise UserError(_explain(error, schema)) from None


def to_object(schema: type[Schema], config: DictConfig, sources: Sequence[Source], prefix: str = "") -> Schema:
    """Return ``config``, composed of ``sources``, as a checked ``schema``; raise UserError as :func:`load`."""
    missing = missing_keys(schema, config)
    if missing:
        raise UserError(f"{', '.join(missing)}: not set; give {missing[0]}=VALUE or set it in a --config file")
    try:
        composed = cast(Schema, OmegaConf.to_object(config))
    except UserError as error:
        where = ", ".join(name for name, _ in sources) or "defaults"
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from None
    except OmegaConfBaseException as error:
        raise UserError(_explain(error, schema)) from None
    _require_paths(composed, prefix)
    return composed


def _require_paths(config: Any, prefix: str) -> None:
    """Raise UserError if a key of ``config``, or of a dataclass in it, must be a path and is a URL."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _require_paths(value, f"{prefix}{field.name}.")
        elif value and is_path_key(field.metadata):
            require_local(f"{prefix}{field.name}", value)


def dump(config: object) -> str:
    """Return ``config`` (one of the dataclasses above) as YAML that :func:`load` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def read_yaml(file: Path) -> Any:
    """Return what the configuration file ``file`` holds; raise UserError if it cannot be read or is not valid YAML."""
    try:
        if not file.is_file():
            raise UserError(f"{file}: no such configuration file")
        if file.stat().st_size > 1 << 20:
            raise UserError(f"{file}: larger than 1 MiB, too large for a configuration file")
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: {_unreadable(error)}") from None
    try:
        _check_depth(text)
        return OmegaConf.load(file)
    except Exception as error:  # the YAML library's errors share no narrower base class with OmegaConf's
        raise UserError(f"{file}: not valid YAML: {' '.join(str(error).split())[:200]}") from None


def _unreadable(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not valid YAML: not UTF-8 at byte {error.start:,}"
    return f"cannot be read: {error.strerror}"


def _check_depth(text: str) -> None:
    """Raise ValueError if lists and mappings lie too deep in ``text``: loading recurses in C, and would crash."""
    depth = 0
    for event in yaml.parse(text, yaml.CSafeLoader):  # these come one by one
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"lists and mappings in one another, more than {MAX_DEPTH} deep")


def _with_lists(part: Any, schema: type) -> Any:
    """Return ``part`` with a list of one in place of a single value, for those keys of ``schema`` that are lists."""
    if not OmegaConf.is_dict(part):
        return part
    values = cast(dict[str, Any], OmegaConf.to_container(part))
    for key in [f.name for f in dataclasses.fields(schema) if get_origin(f.type) is list]:
        if not isinstance(values.get(key, []), list):
            values[key] = [values[key]]
    return values


def _check_texts(part: Any, schema: type, name: str, prefix: str = "") -> None:
    """Raise UserError if ``part`` has a number or a truth value for a key of ``schema`` that is a text.

    In YAML, 0123 is the number 83 and on is true: what was meant cannot be told any more.
    """
    if OmegaConf.is_dict(part):
        part = OmegaConf.to_container(part)
    for field in dataclasses.fields(schema) if isinstance(part, dict) else ():
        value = part.get(field.name)
        if dataclasses.is_dataclass(field.type):
            _check_texts(value, cast(type, field.type), name, f"{prefix}{field.name}.")
        elif _is_text(field.type) or field.type == list[str]:
            for part_value in value if isinstance(value, list) else [value]:
                if isinstance(part_value, bool | int | float):
                    shown = str(part_value).lower() if isinstance(part_value, bool) else part_value
                    problem = f"must be a text, but is {shown} in YAML; put it in quotes"
                    raise UserError(f"{name}: {prefix}{field.name}: {problem}")


def _parse_override(text: str, schema: type) -> Any:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{text!r:.200}: an override has the form key.sub=value")
    try:
        kind = _kind(schema, key)
        if _is_text(kind) and not _is_yaml(value, kind):
            return OmegaConf.from_dotlist([f"{key}={json.dumps(value)}"])
        if kind == list[str]:
            is_list = value.startswith("[")
            return OmegaConf.from_dotlist([f"{key}={json.dumps(_texts(value) if is_list else [value])}"])
        return OmegaConf.from_dotlist([text])
    except Exception as error:  # as above
        raise UserError(f"{text!r:.200}: {' '.join(str(error).split())[:200]}") from None


def _explain(error: Exception, schema: type) -> str:
    """Turn an OmegaConf error into one line that names the key and what would fit."""
    key = getattr(error, "full_key", None)
    message = str(getattr(error, "msg", None) or error).splitlines()[0]
    if not key:
        return message
    owner, leaf = _owner(schema, str(key))
    if owner is None:
        return f"{key}: {message}"
    names = [f.name for f in dataclasses.fields(owner)]
    if leaf.partition("[")[0] in names:  # "weights[0]" is an entry of "weights"
        return f"{key}: {message}"
    close = difflib.get_close_matches(leaf, names, n=1)
    elsewhere = keys_named(schema, leaf)
    hint = f"did you mean '{(elsewhere or close)[0]}'? " if elsewhere or close else ""
    return f"{key}: unknown key; {hint}keys here: {', '.join(names)}"


def keys_named(schema: type, name: str, prefix: str = "") -> list[str]:
    """Return the keys (dotted) of ``schema`` that are ``name`` or end with it: "training.learning_rate"."""
    keys = []
    for field in dataclasses.fields(schema):
        key = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(field.type):
            keys += keys_named(cast(type, field.type), name, f"{key}.")
        elif key == name or key.endswith(f".{name}"):
            keys.append(key)
    return keys


def _kind(schema: type, key: str) -> Any:
    """Return the type of ``key`` (dotted) in ``schema``; None if there is no such key."""
    owner, leaf = _owner(schema, key)
    return next((f.type for f in dataclasses.fields(owner) if f.name == leaf), None) if owner else None


def _is_text(kind: Any) -> bool:
    return kind is str or kind == str | None


def _is_yaml(value: str, kind: Any) -> bool:
    """Return whether ``value``, of a key of type ``kind``, is in quotes, or the null of a key that may be null."""
    return value[:1] in ("'", '"') or (value == "null" and kind is not str)


def _texts(value: str) -> list[str]:
    """Return the elements of a list in YAML, whatever they would be there, as texts."""
    elements = yaml.load(value, yaml.CBaseLoader)  # which makes only texts, lists and mappings
    if not all(isinstance(element, str) for element in elements):
        raise ValueError("must be a list of texts")
    return cast(list[str], elements)


def _owner(schema: type, key: str) -> tuple[type | None, str]:
    """Return the dataclass that ``key`` (dotted) points into, and the key's last part."""
    *path, leaf = key.split(".")
    owner: type | None = schema
    for part in path:
        kinds = {f.name: f.type for f in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else {}
        owner = kinds.get(part) if isinstance(kinds.get(part), type) else None  # type: ignore[assignment]
    return (owner if dataclasses.is_dataclass(owner) else None), leaf
