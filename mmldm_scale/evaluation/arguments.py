"""The options of the commands that evaluate, in a module without the libraries that the jobs import."""

import argparse

from mmldm_scale.common.addresses import add_path
from mmldm_scale.config import presets
from mmldm_scale.config.arguments import add_configuration, at_least_1
from mmldm_scale.diffusion.tasks import TASKS

VARIANTS_FILE = presets.path("ablation/table5")
FINETUNE_FILE = presets.path("kl_vae/finetune")
ABLATION_PROTOCOL = "clean"


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm evaluate``."""
    add = parser.add_argument
    text = "the clips to measure: videos, videos with wav files, wav files, lossless samples, or a set of clips"
    add_path(parser, "--samples", metavar="DIR", help=text)
    add_path(parser, "--reference", metavar="DIR", help="the clips to compare them with, likewise")
    add("--protocol", required=True, metavar="NAME", help="a protocol that comes with mmldm, or a YAML file")
    add_path(parser, "--output", metavar="DIR", help="folder for features and report")
    text = "measure N samples against N reference clips, for a trial; figures are marked as not of the protocol"
    add("--num-samples", type=int, metavar="N", help=text)
    add("--metrics", metavar="KEY,…", help="measure only these of the protocol's metrics, such as fvd,kvd")
    text = "the reference of each sample is the clip of its name, such as the original of a reconstruction"
    add("--paired", action="store_true", help=text)
    _add_job_arguments(parser)
    add("--check", action="store_true", help="check protocol, weights and clips and exit")
    text = "print the fingerprints of the weights beside those of published files and exit"
    add("--check-weights", action="store_true", help=text)
    add_configuration(parser, "weights.i3d=weights/i3d_pretrained_400.pt", preset="weights")


def add_evaluate_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm evaluate-run``."""
    add = parser.add_argument
    add_path(parser, "folder", metavar="RUN", help="the folder of a dit's run")
    add_path(parser, "--reference", required=True, metavar="DIR", help="the clips to compare samples with")
    add("--protocol", required=True, metavar="NAME", help="a protocol that comes with mmldm, or a YAML file")
    text = "samples of each checkpoint (default: as many as the protocol needs; of fewer, figures are marked)"
    add("--num-samples", type=int, metavar="N", help=text)
    text = "of the checkpoints from one multiple of SAMPLES to the next, evaluate the first (default: all checkpoints)"
    add("--every", type=at_least_1, metavar="SAMPLES", help=text)
    add("--watch", action="store_true", help="evaluate new checkpoints, too, until the run is finished")
    add("--task", default="svg", choices=list(TASKS), help="of the samples; default svg")
    add_path(parser, "--input", metavar="PATH", help="a2v: a video, a sound file or a folder of them; v2a: videos")
    add_path(parser, "--autoencoder", metavar="DIR", help="if it was moved since the latents were made with it")
    add("--keep-samples", action="store_true", help="keep the samples after they were measured")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")
    text = "share samples and clips among N processes on this machine, each with a GPU of its own (or the CPUs)"
    add("--processes", type=at_least_1, default=1, metavar="N", help=text)
    add("--check", action="store_true", help="check protocol, weights of networks and reference and exit")
    add_path(parser, "--sampling", action="append", default=[], metavar="FILE", help="settings of mmldm sample")
    add_configuration(parser, "weights.i3d=weights/i3d_pretrained_400.pt sampling.steps=25", preset="weights")


def add_seams_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm seams``."""
    add_path(parser, "folder", metavar="DIR", help="a folder that mmldm sample --seconds filled")


def add_memorisation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm memorisation``."""
    add = parser.add_argument
    add_path(parser, "--samples", required=True, metavar="DIR", help="the samples, in a form that mmldm evaluate takes")
    add_path(parser, "--training", required=True, metavar="DIR", help="the clips that the model was trained on")
    text = "other real clips, to compare the samples with; at least 20"
    add_path(parser, "--held-out", required=True, metavar="DIR", help=text)
    text = "how clips reach the network: a protocol that comes with mmldm, or a YAML file"
    add("--protocol", required=True, metavar="NAME", help=text)
    add("--extractor", required=True, metavar="NAME", help="the network of the protocol that distances are measured in")
    add_path(parser, "--output", required=True, metavar="DIR", help="folder for features and report")
    _add_job_arguments(parser)
    add("--check", action="store_true", help="check protocol, weights and clips and exit")
    add_configuration(parser, "weights.i3d=weights/i3d_pretrained_400.pt", preset="weights")


def _add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of jobs that share clips."""
    add = parser.add_argument
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")
    text = "share the clips among N processes on this machine, each with a GPU of its own (or the CPUs)"
    add("--processes", type=at_least_1, default=1, metavar="N", help=text)
    add("--part", metavar="I/N", help="take the I-th of N shares (1/N … N/N); set automatically in array jobs")


def add_reconstruct_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm reconstruct``."""
    add = parser.add_argument
    text = "an autoencoder run, checkpoint or weights folder"
    add_path(parser, "--checkpoint", required=True, metavar="DIR", help=text)
    add_path(parser, "--input", required=True, metavar="DIR", help="a finished set of clips")
    add("--num-samples", required=True, type=int, metavar="N", help="clips to measure, spread evenly over the set")
    add_path(parser, "--output", required=True, metavar="DIR", help="folder for the results")
    add("--swap-semantics", action="store_true", help="also decode each clip with another clip's semantics")
    text = "also write them to WebDataset tars, OUTPUT/lossless/reconstructed, for mmldm evaluate --paired"
    add("--lossless", action="store_true", help=text)
    add_path(parser, "--config", action="append", default=[], metavar="FILE", help="YAML; later files win")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")
    add("overrides", nargs="*", metavar="key=value", help="e.g. decoding.steps=20 lpips=weights/vgg16.pth")


def add_protocols(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--protocol``, which may be repeated, with the help ``text``."""
    parser.add_argument("--protocol", action="append", metavar="NAME", help=f"{text}; may be repeated")


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
    add_protocols(parser, f"measure rFVD, rKVD and rFAD under this protocol (default: {ABLATION_PROTOCOL})")
    text = "settings of mmldm evaluate: the weights of the protocol's networks; metrics without weights are left out"
    add_path(parser, "--evaluate", action="append", default=[], metavar="FILE", help=text)
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


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm table``."""
    add = parser.add_argument
    add("table", metavar="TABLE", help="1, 4, 5 or 6 of the paper, or a YAML file")
    add_path(
        parser, "--data", metavar="DIR", help="where data sets are: DIR/landscape/clips, DIR/landscape/clips_test, …"
    )
    add_path(parser, "--output", required=True, metavar="DIR", help="folder for the table and all that it is made of")
    add_protocols(parser, "a protocol that comes with mmldm, or a YAML file, in place of the table's own")
    text = "make and measure N samples or reconstructions, for a trial; figures are marked as not of the protocol"
    add("--num-samples", type=at_least_1, metavar="N", help=text)
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")
    text = "sample, train and measure in N processes on this machine, each with a GPU of its own (or the CPUs)"
    add("--processes", type=at_least_1, default=1, metavar="N", help=text)
    text = "tables 5 and 6, inside a SLURM job: train under this command, e.g. srun"
    add("--under", default="", metavar="COMMAND", help=text)
    add("--check", action="store_true", help="check runs, data, weights and settings and exit")
    add_path(parser, "--config", action="append", default=[], metavar="FILE", help="YAML; later files win")
    text = "e.g. weights.i3d=FILE runs.landscape=DIR sample.steps=25"
    add("overrides", nargs="*", metavar="key=value", help=text)
