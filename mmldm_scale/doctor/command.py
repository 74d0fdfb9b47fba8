"""The options of ``mmldm doctor``, and its start in one or several processes, before any library is loaded."""

import argparse
from pathlib import Path

from mmldm_scale.common.addresses import add_path
from mmldm_scale.common.processes import follow_launcher
from mmldm_scale.config import arguments
from mmldm_scale.doctor.findings import report_at_once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm doctor``."""
    add = parser.add_argument
    add("--quick", action="store_true", help="only what takes seconds, as the first step of a job")
    add("--shards", action="append", default=[], metavar="DIR", help="a shard set to check; may be repeated")
    add_path(parser, "--run", dest="folder", metavar="DIR", help="the run folder to check; default runs")
    add(
        "--processes",
        type=arguments.at_least_1,
        metavar="N",
        help="start N processes on this machine, to check their communication",
    )
    add_path(
        parser,
        "--weights",
        nargs="?",
        const=Path("weights"),
        metavar="DIR",
        help="check the pretrained weights in DIR (default weights) and nothing else; prints how to download what is "
        "missing",
    )
    add("--trainable", default="dit", metavar="TRAINABLE", help="whose configuration is given; default dit")
    arguments.add_configuration(parser, "shards=data/audioset/latents")


def run(args: argparse.Namespace) -> int:
    """Check what ``args`` name; return 0, or 1 if a finding is an error.

    Raises:
        UserError: the configuration is not valid.
    """
    if args.weights is not None:
        from mmldm_scale.doctor import weights

        return report_at_once(weights.checks(args.weights))
    if not args.processes:
        follow_launcher()
        from mmldm_scale.doctor import examination

        return examination.run(args)
    from mmldm_scale.cluster import local_launcher

    options = [word for folder in args.shards for word in ("--shards", folder)]
    options += ["--run", str(args.folder)] if args.folder else []
    options += ["--quick"] if args.quick else []
    return local_launcher.run(
        args.processes, ["doctor", "--trainable", args.trainable, *options, *arguments.words(args)]
    )
