"""The options of the commands that have presets: ``--preset``, ``--config`` and ``key=value``.

Presets come first, then the files, then the overrides; among each of them, later ones win.
"""

import argparse
from pathlib import Path

from mmldm_scale.config import presets


def add_configuration(parser: argparse.ArgumentParser, example: str, preset: str = "L") -> None:
    """Add the options to ``parser``; ``example`` is an override and ``preset`` a preset's name, for the help text."""
    parser.add_argument(
        "--preset",
        action="append",
        default=[],
        metavar="NAME",
        help=f"a configuration that comes with mmldm: one of the command's own, such as {preset}, or FOLDER/NAME, "
        "such as cluster/a800; may be repeated, later ones win",
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="a YAML file, applied after the presets; may be repeated, later ones win",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help=f"applied after presets and files, e.g. {example}"
    )


def files(args: argparse.Namespace, folder: str) -> list[Path]:
    """Return the YAML files that ``args`` name, in the order in which they apply.

    Args:
        folder: where presets without a folder in their name lie: the trainable's name, or "data" or "sample".

    Raises:
        UserError: there is no such preset.
    """
    return [*presets.files(args.preset, folder), *map(Path, args.config)]


def words(args: argparse.Namespace) -> list[str]:
    """Return the configuration options of ``args`` as words of a command line, for a process that does the same."""
    options = [("--preset", name) for name in args.preset] + [("--config", file) for file in args.config]
    return [*(word for option in options for word in option), *args.overrides]
