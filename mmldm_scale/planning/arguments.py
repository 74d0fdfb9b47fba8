"""The options of ``mmldm plan``, apart from the planner, whose libraries take time to load."""

import argparse

from mmldm_scale.config import presets
from mmldm_scale.config.arguments import add_configuration
from mmldm_scale.planning.hardware import CLUSTERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm plan``."""
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="NAME",
        help=f"a preset of the dit ({', '.join(presets.names('dit'))}), or autoencoder with --preset or --config",
    )
    add("--gpu", required=True, choices=list(CLUSTERS))
    add("--nodes", type=int, default=1, metavar="N")
    add("--gpus-per-node", type=int, default=8, metavar="N")
    add("--network", type=float, metavar="GB/S", help="between two nodes, in one direction")
    add("--global-batch", type=int, metavar="N", help="samples of a step, in place of the configuration's")
    add("--samples", type=int, metavar="N", help="samples to train on, in place of the configuration's")
    add_configuration(parser, "model.context_tokens=0")
