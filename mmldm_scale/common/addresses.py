"""Addresses: paths on this machine, and URLs of remote storage ("s3://bucket/set") where a setting takes them.

``add_path(parser, "--output")`` adds an option that takes a path alone. :func:`path_key` makes such a
key of a configuration; :func:`mmldm_scale.config.load` calls :func:`require_local` on what it is set to. Without these,
``Path("s3://bucket")`` is a folder named ``s3:`` on this machine.
"""

import argparse
from dataclasses import field
from pathlib import Path
from typing import Any

from mmldm_scale.common.errors import UserError

_PATH = "path"  # in the metadata of a dataclass's field: whether it is the path of a file or folder


def is_url(location: str) -> bool:
    """Return whether ``location`` is a URL (s3://…) instead of a path."""
    return "://" in location


def require_local(name: str, value: str) -> None:
    """Raise UserError if ``value``, that of the option or key ``name``, is a URL."""
    if is_url(value):
        raise UserError(
            f"{name}: {value:.200}: must be a path, not a URL; URLs are allowed in shards= and validation=, and as "
            "--output of shard.py clips, latents, all and import-latents and of mmldm export"
        )


def add_path(parser: argparse._ActionsContainer, name: str, **options: Any) -> None:
    """Add the option ``name``, whose value is a path; a URL raises UserError. ``options`` as for add_argument."""

    def parse(text: str) -> Path:
        require_local(name, text)
        return Path(text)

    parser.add_argument(name, type=parse, **options)


def path_or_url(text: str) -> Path | str:
    """Return ``text`` if it is a URL, else its path (a ``type`` of command-line options)."""
    return text if is_url(text) else Path(text)


def path_key(default: str | None) -> Any:
    """Return the field of a configuration's dataclass whose value is the path of a file or folder, with its default."""
    return field(default=default, metadata={_PATH: True})


def is_path_key(metadata: Any) -> bool:
    """Return whether :func:`path_key` made the field with this ``metadata``."""
    return _PATH in metadata
