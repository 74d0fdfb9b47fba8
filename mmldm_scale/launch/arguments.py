"""The options of ``mmldm train`` and ``mmldm launch``, apart from the work, whose libraries take time to load."""

import argparse

from mmldm_scale.config.arguments import add_configuration, at_least_1

TRAINABLE = "what to train: kl_vae, autoencoder, decoder-distil, dit, or a trainable that another package registers"


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm train``."""
    add = parser.add_argument
    add("trainable", metavar="TRAINABLE", help=TRAINABLE)
    add("--print-config", action="store_true", help="print the composed configuration and exit")
    add(
        "--check",
        action="store_true",
        help="check configuration, shards, weights and run folder, print them and exit, e.g. before submitting a job",
    )
    add("--processes", type=at_least_1, metavar="N", help="start N training processes on this machine, without SLURM")
    add(
        "--under",
        default="",
        metavar="COMMAND",
        help="inside a SLURM job: train under this command, e.g. srun, which starts the job's tasks, and requeue the "
        "job after a failure (the scripts in slurm/ do this; to submit a job, see `mmldm launch`); if its last word is "
        "mmldm, the program of that name is run in place of this one, such as a container's",
    )
    add_configuration(parser, "training.seed=1")


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmldm launch``."""
    add = parser.add_argument
    add("action", choices=["train"], help="the command to run in the jobs")
    add("trainable", metavar="TRAINABLE", help=TRAINABLE)
    add("--nodes", type=int, metavar="N", help="nodes of each job; default 1")
    add("--gpus-per-node", type=int, metavar="N", help="GPUs of each node; each gets one training process")
    add("--tasks-per-node", type=int, metavar="N", help="training processes of each node, for nodes without GPUs")
    add(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="partition, account, qos, constraint, hours, cpus (of each process), memory_gb (of each node), grace "
        "(seconds before the time limit at which the training saves), parallel (runs of a sweep at the same time); or "
        "a YAML file of these keys",
    )
    add(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=V,V",
        help="one run for each of the values; several --sweep are combined",
    )
    add_configuration(parser, "shards=data/audioset/latents; run= is the folder of a whole sweep")
