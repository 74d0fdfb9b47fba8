"""The options of the commands that have presets: ``--preset``, ``--config`` and ``key=value``.

Presets and files apply in the order of the command line, then the overrides; later ones win.
"""

import argparse
from pathlib import Path

from mmldm_scale.common.addresses import add_path
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import presets


class Preset(str):
    """The name of a preset, as given with ``--preset``."""


def at_least_1(text: str) -> int:
    """Return the whole number that ``text`` says (for ``type``); raise argparse's error unless it is at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, at least 1")
    return int(text)


def add_configuration(parser: argparse.ArgumentParser, example: str, preset: str = "L") -> None:
    """Add the options to ``parser``; ``example`` is an override and ``preset`` a preset's name, for the help text."""
    parser.add_argument(
        "--preset",
        dest="configuration",
        type=Preset,
        action="append",
        default=[],
        metavar="NAME",
        help=f"a configuration that comes with mmldm: one of the command's own, such as {preset}, or FOLDER/NAME, "
        "such as cluster/a800; presets and files apply in the order given, later ones win",
    )
    add_path(
        parser,
        "--config",
        dest="configuration",
        action="append",
        default=[],
        metavar="FILE",
        help="a YAML file; may be repeated",
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
    given: list[Preset | Path] = args.configuration
    return [presets.path(source, folder) if isinstance(source, Preset) else source for source in given]


def require_configuration(args: argparse.Namespace, folder: str, run: Path) -> None:
    """Check that ``args`` name a preset or a file, or set the model by themselves: its size would be a surprise.

    Args:
        folder: as for :func:`files`.
        run: the run's folder; that of a run to be resumed holds its configuration.

    Raises:
        UserError: they do not, and there are presets.
    """
    names, stored = presets.names(folder), run / "config.yaml"
    if args.configuration or not names or any(text.startswith("model.") for text in args.overrides):
        return
    again = f"; to resume the run: --config {stored}" if stored.is_file() else ""
    raise UserError(f"no configuration given: --preset NAME, of {', '.join(names)}, or --config FILE{again}")


def words(args: argparse.Namespace) -> list[str]:
    """Return the configuration options of ``args`` as words of a command line, for a process that does the same."""
    options = [("--preset" if isinstance(source, Preset) else "--config", str(source)) for source in args.configuration]
    return [*(word for option in options for word in option), *args.overrides]


def describe(args: argparse.Namespace) -> str:
    """Return the presets and files of ``args`` as a phrase, such as "preset L, conf.yaml and 2 settings"."""
    names = [f"preset {source}" if isinstance(source, Preset) else str(source) for source in args.configuration]
    count = len(args.overrides)
    names += [f"{count} setting{'s' * (count > 1)}"] if count else []
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
