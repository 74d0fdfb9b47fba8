"""The JSON files of a shard set: checksummed, written atomically, read with a size limit.

``write_json`` and ``read_json`` convert; :func:`check_types` compares a dataclass instance with its annotations.
"""

import dataclasses
import functools
import json
import re
import zlib
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.errors import UserError

JSON_LIMIT = 1 << 30  # bytes; the plan of two million clips takes a few hundred million


class DamagedSet(UserError):
    """A file of a shard set is missing, truncated, changed or of another format; the message names it."""


def write_json(path: Path, value: dict[str, Any], indent: int | None = None) -> None:
    """Write ``value`` as JSON atomically, with a first key "checksum": the CRC-32 of everything after that key.

    The file is ASCII, so that any file name survives, and plain JSON to other readers.
    """
    rest = json.dumps(value, indent=indent, allow_nan=False).encode("ascii")[1:] + b"\n"
    write_whole(path, b'{"checksum": "%08x",' % zlib.crc32(rest) + rest)


def read_json(path: Path) -> dict[str, Any]:
    """Return what :func:`write_json` wrote to ``path``; raise DamagedSet if the file cannot be read or was changed."""
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise DamagedSet(f"{path}: larger than {JSON_LIMIT:,} bytes, the limit of a set's JSON files")
        data = path.read_bytes()
    except OSError as error:
        raise DamagedSet(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from None
    return parse_json(data, str(path))


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """Return the value that :func:`write_json` serialized as ``data``; raise DamagedSet with ``name`` if changed."""
    checked = re.match(rb'{"checksum": "([0-9a-f]{8})",', data)
    if not checked or int(checked[1], 16) != zlib.crc32(data[checked.end() :]):
        raise DamagedSet(f"{name}: its content does not match its checksum; the file is damaged")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedSet(f"{name}: cannot be read: {' '.join(str(error).split())[:200]}") from None
    del value["checksum"]
    return value


def check_types(value: Any) -> None:
    """Raise TypeError if a field of the dataclass instance ``value``, nested ones included, has another type."""
    schema: Any = type(value)
    for name, hint in _hints(schema).items():
        item = getattr(value, name)
        if type(item) is not hint and not _matches(item, hint):
            raise TypeError(f"{name}: {item!r:.100} is not of type {getattr(hint, '__name__', hint)}")


@functools.cache
def _hints(schema: type) -> dict[str, Any]:
    return get_type_hints(schema)


def _matches(item: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is UnionType:
        return any(_matches(item, option) for option in inner)
    if origin is Literal:
        return item in inner
    if origin is list:
        return isinstance(item, list) and all(type(each) is inner[0] or _matches(each, inner[0]) for each in item)
    if origin is tuple:
        return isinstance(item, tuple) and len(item) == len(inner) and all(map(_matches, item, inner))
    if origin is dict:
        return isinstance(item, dict) and all(_matches(k, inner[0]) and _matches(v, inner[1]) for k, v in item.items())
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(item, hint):
        check_types(item)
        return True
    return type(item) is hint or (hint is float and type(item) is int)
