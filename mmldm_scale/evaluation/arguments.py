"""The options of ``mmldm reconstruct``, apart from the job so that other commands need not load its libraries."""

import argparse
from pathlib import Path


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
