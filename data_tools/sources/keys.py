"""Keys of samples: plain names made of their paths, no two alike."""

import os
import re
import unicodedata
from collections import Counter
from hashlib import blake2b

from mmldm_scale.common.errors import UserError

KEY_CHARACTERS = 56  # of a video's key, before what tells it from others and its window's number


def unique_keys(paths: list[str]) -> list[str]:
    """Return a key for each path: letters, digits, "_" and "-" only, no two alike, the same for the same list.

    A path that stays readable and alone keeps its own name ("cat/a 1.mp4" becomes "cat_a_1"); those that would share a
    name, or are cut, get a hash of their path at the end.
    """
    plain = [_plain(path) for path in paths]
    keys = [_hashed(*pair, 8) if len(pair[0]) > KEY_CHARACTERS else pair[0] for pair in zip(plain, paths, strict=True)]
    for digits in (8, 16):
        counts = Counter(keys)
        for i, path in enumerate(paths):
            if counts[keys[i]] > 1:
                keys[i] = _hashed(plain[i], path, digits)
    if len(set(keys)) < len(keys):
        raise UserError("two paths of the input give the same key even with a hash; rename one of them")
    return keys


def _plain(path: str) -> str:
    dot = path.rfind(".")
    stem = path[:dot] if path.rfind("/") + 1 < dot < len(path) - 1 else path
    if not stem.isascii():
        stem = "".join(c for c in unicodedata.normalize("NFKD", stem) if not unicodedata.combining(c))
    return re.sub("[^A-Za-z0-9_-]", "_", stem)


def _hashed(name: str, path: str, digits: int) -> str:
    digest = blake2b(os.fsencode(path)).hexdigest()[:digits]
    return f"{name[: KEY_CHARACTERS - digits - 1]}-{digest}"
