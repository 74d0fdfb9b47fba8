"""Options of ``mmldm rate``, without the libraries that the command imports."""

import argparse

from mmldm_scale.common.addresses import add_path
from mmldm_scale.config.arguments import at_least_1

HOST, PORT = "127.0.0.1", 8765


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands ``serve`` and ``report`` with their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    does = "serve the pages on which raters vote; the first call makes the study, later ones resume it"
    _add_serve_arguments(actions.add_parser("serve", help=does, description=f"{does[0].upper()}{does[1:]}."))
    does = "evaluate the votes: means, intervals, agreement, preferences"
    _add_report_arguments(actions.add_parser("report", help=does, description=f"{does[0].upper()}{does[1:]}."))


def _add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_path(parser, "--study", required=True, metavar="DIR", help="folder of the study, with its votes")
    add(
        "--set",
        dest="sets",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="clips to rate: a folder of mp4 files with sound; once for each set",
    )
    mode = parser.add_mutually_exclusive_group()
    text = "two clips of two sets side by side, of the same file name (the default for two or more sets)"
    mode.add_argument("--pairs", dest="mode", action="store_const", const="pairs", help=text)
    mode.add_argument("--single", dest="mode", action="store_const", const="single", help="one clip at a time")
    add("--questions", type=at_least_1, metavar="N", help="pairs or clips for each rater; default: 40, or all")
    add("--attention", type=int, metavar="K", help="attention checks for each rater; default: 3")
    add("--seed", type=int, metavar="S", help="of the raters' questions and their order; default: 0")
    add("--port", type=int, default=PORT, metavar="P", help="default: %(default)s; 0: any that is free")
    add("--host", default=HOST, metavar="H", help="address to listen on; default: %(default)s, this machine alone")


def _add_report_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "--study", required=True, metavar="DIR", help="folder of the study")
    add_path(parser, "--output", metavar="DIR", help="folder for the report; default: report in the study's folder")
