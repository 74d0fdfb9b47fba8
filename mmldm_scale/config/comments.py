"""What the source says about each field of a configuration dataclass: the comment at the end of the field's line.

The comment is the documentation of its key: ``mmldm train … --print-config`` prints it, and docs/reference/ lists it.
It may begin with the unit in square brackets, and may go on from comment lines directly above the field::

    warmup_samples: int = 0  # [samples] the learning rate rises linearly over this many
"""

import ast
import functools
import inspect
import io
import re
import textwrap
import tokenize


def comments(schema: type) -> dict[str, str]:
    """Return the comment of each field of the dataclass ``schema``, inherited ones included; empty without one."""
    merged: dict[str, str] = {}
    for parent in reversed(schema.__mro__):
        if "__annotations__" in vars(parent):
            merged |= {name: text for name, text in _own(parent).items() if text or name not in merged}
    return merged


def split_unit(comment: str) -> tuple[str, str]:
    """Split "[unit] meaning" into unit and meaning; the unit is empty if there is none."""
    match = re.fullmatch(r"\[([^\]]+)\] (.*)", comment)
    return (match[1], match[2]) if match else ("", comment)


@functools.cache
def _own(schema: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(schema))
    lines = source.splitlines()
    by_line = {
        token.start[0]: (token.string.lstrip("# "), lines[token.start[0] - 1].lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    body = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)).body
    fields = [node for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return {node.target.id: _comment(by_line, node) for node in fields if isinstance(node.target, ast.Name)}


def _comment(by_line: dict[int, tuple[str, bool]], field: ast.AnnAssign) -> str:
    """Return the comments above and beside ``field``; ``by_line``: each line's comment, and whether nothing else."""
    above = field.lineno
    while by_line.get(above - 1, ("", False))[1]:
        above -= 1
    lines = range(above, (field.end_lineno or field.lineno) + 1)
    return " ".join(by_line[line][0] for line in lines if line in by_line)
