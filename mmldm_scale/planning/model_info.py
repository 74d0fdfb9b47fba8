"""``mmldm model-info``: parameters, arithmetic and memory of the presets, or of one configuration or run."""

import argparse
from typing import Any

from torch import nn

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import MediaConfig, arguments
from mmldm_scale.models.flops import model_info
from mmldm_scale.planning.memory import GIB, predict, working_outline
from mmldm_scale.planning.memory_table import memory_table
from mmldm_scale.planning.sizes import load_run, read_sizes
from mmldm_scale.planning.workload import load_config
from mmldm_scale.trainables.registry import Registration, registered


def run(args: argparse.Namespace) -> int:
    """Print what the arguments of ``mmldm model-info`` ask for; return the exit status.

    Raises:
        UserError: the configuration, the run or its shards cannot be used.
    """
    if args.run_folder is not None:
        if args.trainable or args.configuration:
            raise UserError(f"--run {args.run_folder}: has its own configuration; give no other beside it")
        print(describe(*load_run(args.run_folder, args.overrides)))
    elif args.configuration or args.overrides:
        record = registered(args.trainable or "dit")
        print(describe(record, load_config(record.name, arguments.files(args, record.name), args.overrides)))
    else:
        from mmldm_scale.models.autoencoder.sizes import autoencoder_info  # imports diffusers, which takes seconds

        media = MediaConfig()
        sizes = f"clips of {media.frames} frames of {media.size} × {media.size} pixels, the paper's"
        print(f"all of these are for {sizes}; --run DIR and shards=DIR take other sizes\n")
        for table in (model_info, autoencoder_info, memory_table):
            print(table(), end="\n\n", flush=True)
    return 0


def describe(record: Registration, config: Any) -> str:
    """Return parameters, forward FLOPs of a sample and memory in training of the model that ``config`` describes."""
    sizes = read_sizes(record, config)
    outline = record.outline(config, sizes.manifest)
    networks = {"trained": outline.module, "of the discriminator": outline.discriminator, "frozen": outline.frozen}
    counts = [f"{_count(network) / 1e6:,.1f} M {name}" for name, network in networks.items() if network is not None]
    flops, training = outline.count_flops(), config.training
    working = working_outline(lambda config: record.outline(config, sizes.manifest), config)
    memory = predict(working, training, processes=1).total / GIB
    rows = {
        "sizes": sizes.description,
        "parameters": ", ".join(counts),
        "forward": f"{flops / 1e9:,.1f} GFLOPs of a sample; training takes three times as many",
        "memory": f"{memory:,.1f} GiB on one GPU with micro_batch={training.micro_batch}, {training.precision} and "
        f"ZeRO-{training.zero_stage}, as predicted; mmldm plan is for more GPUs",
    }
    return "\n".join([record.name, *(f"  {name:<12} {text}" for name, text in rows.items())])


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
