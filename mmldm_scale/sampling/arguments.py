"""The options of ``mmldm sample``, in a module of their own so that other commands do not load the job's libraries."""

import argparse
from typing import get_args

from mmldm_scale.common.addresses import add_path
from mmldm_scale.config import GenerationTask
from mmldm_scale.config.arguments import add_configuration, at_least_1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm sample``."""
    add_path(parser, "--checkpoint", required=True, metavar="DIR", help="a dit run, checkpoint or weights folder")
    parser.add_argument("--task", required=True, choices=get_args(GenerationTask))
    parser.add_argument("--num-samples", required=True, type=int, metavar="N")
    add_path(parser, "--output", required=True, metavar="DIR")
    add_path(parser, "--input", metavar="PATH", help="a2v: a video, a sound file or a folder of them; v2a: videos")
    parser.add_argument("--label", metavar="NAME", help="the class of all samples, for a model trained on classes")
    add_path(parser, "--autoencoder", metavar="DIR", help="if it was moved since the latents were made with it")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")
    parser.add_argument(
        "--processes",
        type=at_least_1,
        default=1,
        metavar="N",
        help="share the samples among N processes on this machine, each with a GPU of its own (or the CPUs)",
    )
    parser.add_argument(
        "--part", metavar="I/N", help="generate the I-th of N shares (1/N … N/N); set automatically in array jobs"
    )
    parser.add_argument(
        "--lossless",
        action="store_true",
        help="also write the samples to WebDataset tars, OUTPUT/lossless/TASK: frames as PNG, sound as 32-bit floats",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="decode the samples that exist (with --lossless their tars, too) and check their JSON; make those again "
        "that are damaged",
    )
    parser.add_argument(
        "--check", action="store_true", help="check weights, settings and inputs and exit, e.g. before submitting a job"
    )
    add_configuration(parser, "seed=1 steps=25 video_guidance=4", preset="audioset")


def add_gallery_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm gallery``."""
    add_path(parser, "folders", nargs="+", metavar="DIR", help="a folder that mmldm sample has filled")
    add_path(parser, "--output", required=True, metavar="FILE", help="the page, FILE.html; its links are relative")
