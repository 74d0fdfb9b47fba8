"""The options of ``mmldm plan``, apart from the planner, whose libraries take time to load."""

import argparse

from mmldm_scale.common.addresses import add_path
from mmldm_scale.config import presets
from mmldm_scale.config.arguments import add_configuration
from mmldm_scale.planning.hardware import CLUSTERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm plan``."""
    add = parser.add_argument
    add(
        "--model",
        metavar="NAME",
        help=f"a preset of the dit ({', '.join(presets.names('dit'))}), or autoencoder with --preset or --config",
    )
    add_path(parser, "--run", dest="run_folder", metavar="DIR", help="the run to plan, instead of --model")
    add("--gpu", required=True, choices=list(CLUSTERS))
    add("--nodes", type=int, default=1, metavar="N")
    add("--gpus-per-node", type=int, default=8, metavar="N")
    add("--network", type=float, metavar="GB/S", help="between two nodes, in one direction")
    add("--global-batch", type=int, metavar="N", help="samples of a step, in place of the configuration's")
    add("--samples", type=int, metavar="N", help="samples to train on, in place of the configuration's")
    add_configuration(parser, "shards=data/latents, whose sizes the plan is for")


def add_model_info_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm model-info``."""
    add_path(parser, "--run", dest="run_folder", metavar="DIR", help="the model of this run, instead of the presets")
    text = "what is configured by --preset, --config or key=value; default dit"
    parser.add_argument("--trainable", metavar="TRAINABLE", help=text)
    add_configuration(parser, "shards=data/latents, whose sizes the figures are for")
