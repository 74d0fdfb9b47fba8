"""Which recording each sample of a set comes from, so that no model is validated on what it learns from.

:func:`recording_id` derives an id from a sample's "json" member when a shard is written. The shard's index holds it, so
that sets are compared without reading their tars. Latents have the ids of the clips that they were encoded from.
"""

import posixpath
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

UNKNOWN = 0  # the id of a sample whose recording is not known


def recording_id(meta: Mapping[str, Any]) -> int:
    """Return a number of 64 bits that the samples of one recording share; UNKNOWN if ``meta`` does not tell it.

    A recording is known by its "origin", such as the id of a YouTube video. Where that is only the file's own name,
    which files of other folders may have as well, it is known by its path and "file_bytes", the file's size.
    """
    path, origin, size = meta.get("path"), meta.get("origin"), meta.get("file_bytes")
    if not isinstance(path, str):
        path = ""
    if isinstance(origin, str) and origin and not _is_own_name(origin, path):
        return _hash(f"origin/{origin}")
    return _hash(f"file/{size}/{path}") if path and isinstance(size, int) and size > 0 else UNKNOWN


def _is_own_name(origin: str, path: str) -> bool:
    stem = posixpath.splitext(path)[0]
    return any(name == origin or name.endswith(f"/{origin}") for name in (path, stem))


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
