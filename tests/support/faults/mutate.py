"""Hostile versions of good input: text, and the values of JSON. Each is a function of the random generator given."""

import copy
from typing import Any

import numpy as np

from tests.support.faults.guard import TRAP

TOKENS = (
    *("", " ", "\0", "\t", "\r", '"', "'", ",", ";", ":", "- ", "[", "]", "{", "}", "&a ", "*a", "#", "|", "%", "<<: "),
    *("nan", ".inf", "-1", "0", "1e999", "9" * 40, "0x10", "1_000", "null", "true", "~", "é视", "\ufeff", "\udcff"),
    *("../../was_here", "/etc/passwd", "file:///etc/passwd", "x" * 5000, "[" * 3000, "{a: " * 800, "- " * 2000),
    *("${oc.env:HOME}", "${shards}", "${", "${${a}}", "!!int x", "!!binary x", "!!set {a, b}", "? a\n: b\n"),
    *(f"!!python/object/apply:os.system ['{TRAP}']", f'!!python/object/new:os.system ["{TRAP}"]'),
    *(f"__import__('os').system('{TRAP}')", "!!python/name:os.system", "!!python/module:os"),
)
VALUES = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(10**30), 10**400, 0.5, -0.0, 1e308, "", "\0", "\n", "é视", "\udcff"),
    *("../../was_here", "/etc/passwd", "x" * 5000, "shard-000000", "nan", [], {}, [[]], [None], {"a": 1}, [0] * 1000),
)


def text(good: str, rng: np.random.Generator) -> bytes:
    """Return ``good`` with a few of its lines and words changed, as UTF-8 or not quite."""
    lines = good.splitlines(keepends=True)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        place = int(rng.integers(len(lines)))
        line, change = lines[place], rng.integers(8)
        column = int(rng.integers(len(line) + 1))
        token = TOKENS[rng.integers(len(TOKENS))]
        if change < 3:
            lines[place] = line[:column] + token + line[column:]
        elif change == 3:  # in place of what stands behind a separator
            head, mark, _ = line.partition(":" if ":" in line else ",")
            lines[place] = f"{head}{mark} {token}\n"
        elif change == 4:
            lines[place] = line[:column]
        elif change == 5:
            lines.insert(place, lines[rng.integers(len(lines))])
        elif change == 6:
            lines[place] = " " * int(rng.integers(1, 9)) + line
        else:
            lines[place] = line * int(rng.choice([0, 2, 30]))
    data = bytearray("".join(lines).encode("utf-8", "surrogateescape"))
    if data and rng.random() < 0.2:
        data[rng.integers(len(data))] = rng.integers(256)
    return bytes(data)


def value(good: Any, rng: np.random.Generator) -> Any:
    """Return a copy of the JSON value ``good``, an object or a list, with some of what is in it changed."""
    changed = copy.deepcopy(good)
    for _ in range(rng.integers(1, 4)):
        parent, key = _place(changed, rng)
        change = rng.integers(6)
        if key is None:
            continue
        if change == 0:
            del parent[key]
        elif change == 1 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif change == 2:
            other, name = _place(good, rng)
            parent[key] = copy.deepcopy(other[name]) if name is not None else None
        elif change == 3 and isinstance(parent[key], int):
            parent[key] += int(rng.choice([-512, -1, 1, 512, 1 << 40]))
        else:
            parent[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
    return changed


def _place(top: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """Return a container in ``top`` and a key of it, or None where it is empty: the higher, the likelier."""
    node = top
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return node, None
        key = keys[rng.integers(len(keys))]
        if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.3:
            return node, key
        node = node[key]
