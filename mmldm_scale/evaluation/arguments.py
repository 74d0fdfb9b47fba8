"""The options of ``mmldm reconstruct`` and ``mmldm ladder``, apart from the jobs, whose libraries take time to load."""

import argparse
from pathlib import Path

from mmldm_scale.config import presets


def add_reconstruct_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm reconstruct``."""
    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="an autoencoder run, checkpoint or weights folder"
    )
    parser.add_argument("--input", required=True, type=Path, metavar="DIR", help="a finished set of clips")
    parser.add_argument("--num-samples", required=True, type=int, metavar="N", help="clips, spread evenly over the set")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--swap-semantics", action="store_true", help="decode each clip with another one's semantics too"
    )
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML; later files win")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. decoding.steps=20 lpips=alexnet.pth")


def add_ladder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm ladder``."""
    parser.add_argument("--ladder", default=presets.path("ablation/table5"), metavar="FILE", help="the rungs")
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="of the autoencoder; later files win"
    )
    parser.add_argument(
        "--finetune",
        action="append",
        metavar="FILE",
        help="of the KL-VAE's fine-tuning (by default configs/kl_vae/finetune.yaml); later files win",
    )
    parser.add_argument(
        "--reconstruct", action="append", default=[], metavar="FILE", help="settings of mmldm reconstruct"
    )
    parser.add_argument("--input", required=True, type=Path, metavar="DIR", help="the set of clips to measure with")
    parser.add_argument("--num-samples", required=True, type=int, metavar="N", help="clips of it")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="takes a run folder for each rung")
    parser.add_argument("--processes", type=int, metavar="N", help="train in N processes on this machine")
    parser.add_argument("--launch", default="", metavar="COMMAND", help="train under it, e.g. srun")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every rung: shards=DIR kl_vae=PATH …")
