"""The paper's tables, in one YAML file each, beside this file: rows, data sets, protocols and the published figures.

    tables.names()             # ["1", "4", "5", "6"]
    tables.load("1")           # the shipped one
    tables.load("mine.yaml")   # a file of one's own

``definition.py`` has the keys. ``command.py`` makes a table.
"""

from pathlib import Path

from mmldm_scale import config
from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.tables.definition import TableDefinition

FOLDER = Path(__file__).parent
PREFIX, SUFFIX = "table", ".yaml"


def names() -> list[str]:
    """Return the names of the shipped tables, sorted."""
    return sorted(file.stem.removeprefix(PREFIX) for file in FOLDER.glob(f"{PREFIX}*{SUFFIX}"))


def load(name: str) -> TableDefinition:
    """Return the table ``name``: that of a shipped file, or the path of a YAML file.

    Raises:
        UserError: there is no such table or file, or one of its keys or values is wrong.
    """
    if name in names():
        return config.load(TableDefinition, [FOLDER / f"{PREFIX}{name}{SUFFIX}"])
    if not name.endswith((".yaml", ".yml")):
        raise UserError(f"table {name:.80}: must be one of {', '.join(names())}, or the path of a YAML file")
    return config.load(TableDefinition, [name])
