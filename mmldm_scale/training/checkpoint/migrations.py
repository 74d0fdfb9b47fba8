"""Formats of checkpoints, and how a manifest of an older one is brought to the present one.

To change the format, raise :data:`FORMAT` by one and add to :data:`MIGRATIONS` a function that turns the fields of the
format before into those of the next.
"""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmldm_scale.common.errors import UserError
from mmldm_scale.models.dit import layout_problem
from mmldm_scale.models.pretrained import CONFIG

FORMAT = 3  # what this version writes
Fields = dict[str, Any]


class UnsupportedFormat(UserError):
    """A checkpoint is not damaged, but of a format that this version does not read."""


def _states_in_files(fields: Fields) -> Fields:
    """Format 2 had one state, of step skipping, in ``health.json`` of the checkpoint's folder."""
    return {**fields, "states": {"step_skipping": "health.json"} if "health.json" in fields["files"] else {}}


MIGRATIONS: dict[int, Callable[[Fields], Fields]] = {2: _states_in_files}  # from a format to the next
OLDEST = min(MIGRATIONS)


def migrate(fields: Fields) -> Fields:
    """Return the ``fields`` of a manifest as those of format :data:`FORMAT`.

    Raises:
        UnsupportedFormat: there is no way from their format.
    """
    number = fields["format"]
    while number != FORMAT:
        if number not in MIGRATIONS:
            raise UnsupportedFormat(
                f"was written in checkpoint format {fields['format']!r:.20}; this version reads formats {OLDEST} to "
                f"{FORMAT}; use the version that wrote it, or start another run with run="
            )
        fields, number = MIGRATIONS[number](fields), number + 1
    return {**fields, "format": FORMAT}


def check_layout(weights: Path) -> None:
    """Check, by the folder ``weights`` of a checkpoint, that its tensors are those of this version's model.

    A description that cannot be read is damage, which the sha256 of its file tells.

    Raises:
        UnsupportedFormat: they are of an older one.
    """
    with contextlib.suppress(OSError, ValueError):
        description = json.loads((weights / CONFIG).read_text())
        problem = layout_problem(description) if isinstance(description, dict) else None
        if problem:
            raise UnsupportedFormat(problem)


def migrate_state(name: str, state: Fields) -> Fields:
    """Return the state ``name`` of a checkpoint with the keys that it has in the present format."""
    renamed = {"streak": "consecutive_skips"} if name == "step_skipping" else {}  # format 2
    return {renamed.get(key, key): value for key, value in state.items()}
