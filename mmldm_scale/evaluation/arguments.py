"""Options of ``mmldm reconstruct`` and ``mmldm ablation``, without the libraries that the jobs import."""

import argparse

from mmldm_scale.common.addresses import add_path
from mmldm_scale.config import presets
from mmldm_scale.config.arguments import add_configuration, at_least_1

VARIANTS_FILE = presets.path("ablation/table5")
FINETUNE_FILE = presets.path("kl_vae/finetune")


def add_reconstruct_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm reconstruct``."""
    add = parser.add_argument
    text = "an autoencoder run, checkpoint or weights folder"
    add_path(parser, "--checkpoint", required=True, metavar="DIR", help=text)
    add_path(parser, "--input", required=True, metavar="DIR", help="a finished set of clips")
    add("--num-samples", required=True, type=int, metavar="N", help="clips to measure, spread evenly over the set")
    add_path(parser, "--output", required=True, metavar="DIR", help="folder for the results")
    add("--swap-semantics", action="store_true", help="also decode each clip with another clip's semantics")
    add_path(parser, "--config", action="append", default=[], metavar="FILE", help="YAML; later files win")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")
    add("overrides", nargs="*", metavar="key=value", help="e.g. decoding.steps=20 lpips=weights/vgg16.pth")


def add_ablation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm ablation``; the configuration is that of the autoencoder's training."""
    add = parser.add_argument
    text = "YAML of the variants (default: %(default)s)"
    add_path(parser, "--variants", default=VARIANTS_FILE, metavar="FILE", help=text)
    add_configuration(parser, "shards=DIR kl_vae=PATH, for every variant")
    add_path(
        parser,
        "--finetune",
        action="append",
        metavar="FILE",
        help=f"of the KL-VAE's fine-tuning; later files win (default: {FINETUNE_FILE})",
    )
    add_path(parser, "--reconstruct", action="append", default=[], metavar="FILE", help="settings of mmldm reconstruct")
    add_path(parser, "--input", required=True, metavar="DIR", help="the set of clips to measure with")
    add("--num-samples", required=True, type=int, metavar="N", help="clips of that set to measure")
    add_path(
        parser, "--output", required=True, metavar="DIR", help="folder for the variants' run folders and the table"
    )
    add("--check", action="store_true", help="check configurations, shards and weights and exit")
    add("--processes", type=at_least_1, metavar="N", help="train in N processes on this machine")
    add(
        "--under",
        default="",
        metavar="COMMAND",
        help="inside a SLURM job: train under this command, e.g. srun",
    )
