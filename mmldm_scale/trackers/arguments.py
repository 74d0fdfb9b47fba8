"""The options of ``mmldm follow``, apart from the command, so that parsing them loads nothing large."""

import argparse

from mmldm_scale.common.addresses import add_path
from mmldm_scale.trackers.table import TRACKERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to ``parser``."""
    add = parser.add_argument
    add_path(parser, "folder", metavar="RUN", help="a run's folder; it may be missing until its training begins")
    add("--to", required=True, metavar="TRACKER", help=f"{', '.join(TRACKERS)}, or that of another package")
    add("--project", metavar="NAME", help="of the tracker; default: mmldm")
    add("--once", action="store_true", help="send all there is and end, instead of waiting for the training's end")
    add("--every", type=float, default=10.0, metavar="SECONDS", help="between two looks at the log; default: 10")
