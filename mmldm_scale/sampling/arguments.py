"""The options of ``mmldm sample``, in a module of their own so that other commands do not load the job's libraries."""

import argparse

from mmldm_scale.common.addresses import add_path
from mmldm_scale.config.arguments import add_configuration, at_least_1
from mmldm_scale.diffusion.tasks import TASKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm sample``."""
    add_path(parser, "--checkpoint", required=True, metavar="DIR", help="a dit run, checkpoint or weights folder")
    parser.add_argument("--task", required=True, choices=list(TASKS))
    text = "default: as many as there are inputs, or else prompts"
    parser.add_argument("--num-samples", type=int, metavar="N", help=text)
    add_path(parser, "--output", required=True, metavar="DIR")
    text = "what a2v, v2a and continuations start from: a video, a sound file (a2v, audio_continuation), a folder of "
    add_path(parser, "--input", metavar="PATH", help=text + "them, or a shard set of clips")
    parser.add_argument(
        "--window",
        metavar="WHICH",
        help="the part of each input: first, last, all (each whole one) or the second at which it begins (default: "
        "first; of continuations last)",
    )
    text = "length of the samples, for a model that continues clips (default: that of its clips)"
    parser.add_argument("--seconds", type=float, metavar="S", help=text)
    parser.add_argument("--label", metavar="NAME", help="the class of all samples, for a model trained on classes")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="TEXT", help="the text of all samples, for a model trained on texts")
    text = "a text a line: sample i takes line i modulo their number"
    add_path(prompts, "--prompts", metavar="FILE", help=text)
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
