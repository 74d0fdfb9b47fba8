"""The command ``mmldm`` and its sub-commands. Thin: it parses, and calls the package that does the work."""

import argparse
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.processes import die_with_launcher
from mmldm_scale.trainables.registry import TRAINABLES, registered

EPILOG = """\
examples:
  mmldm train dit --config configs/dit/S.yaml --config configs/cluster/a800.yaml shards=data/latents run=runs/dit_S
  mmldm train dit --config configs/dit/demo.yaml shards=demo/latents --processes 2
  mmldm launch train dit --nodes 16 --gpus-per-node 8 --config configs/dit/L.yaml shards=data/latents run=runs/dit_L
  mmldm sample --checkpoint runs/dit_S --task svg --num-samples 16 --output runs/dit_S/samples
  mmldm reconstruct --checkpoint runs/autoencoder --input data/clips --num-samples 256 --output runs/reconstruction
  mmldm export --checkpoint runs/dit_S --ema 0.08 --output weights/dit_S
  mmldm status runs/dit_S
  mmldm doctor --shards data/latents --run runs/dit_S
  mmldm model-info
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="mmldm",
        description="Train MM-LDM, a multi-modal latent diffusion model for videos with sound, and sample from it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands.add_parser("train", help="train a kl_vae, an autoencoder or a dit"))
    _add_launch(commands.add_parser("launch", help="submit a training, or a sweep of them, to SLURM"))
    _add_sample(commands.add_parser("sample", help="make videos with sound from a trained dit"))
    _add_reconstruct(commands.add_parser("reconstruct", help="measure an autoencoder's reconstructions of clips"))
    _add_ablation(commands.add_parser("ablation", help="train an autoencoder's variants, compare them (Tables 5, 6)"))
    _add_export(commands.add_parser("export", help="write weights out of a run: averaged, raw, or for diffusers"))
    _add_plan(commands.add_parser("plan", help="what a training takes of GPUs: memory, traffic, days"))
    _add_doctor(commands.add_parser("doctor", help="say whether machine, environment and data are in order"))
    _add_status(commands.add_parser("status", help="say how runs are doing"))
    info = commands.add_parser("model-info", help="print the models' sizes, arithmetic and memory in training")
    info.set_defaults(run=_model_info)
    return top


def _add_train(train: argparse.ArgumentParser) -> None:
    train.add_argument("model", choices=list(TRAINABLES))
    train.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML; later files win")
    train.add_argument("--print-config", action="store_true", help="print the composed configuration and stop")
    train.add_argument("--processes", type=int, metavar="N", help="start N processes on this machine, without SLURM")
    train.add_argument("--launch", default="", metavar="COMMAND", help="start them under it, e.g. srun; see slurm/*.sh")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. training.seed=1")
    train.set_defaults(run=_train)


def _add_launch(launch: argparse.ArgumentParser) -> None:
    add = launch.add_argument
    add("what", choices=["train"])
    add("model", choices=list(TRAINABLES))
    add("--nodes", type=int, metavar="N", help="1 by default")
    add("--gpus-per-node", type=int, metavar="N", help="one task is started on each GPU")
    add("--tasks-per-node", type=int, metavar="N", help="on nodes without GPUs")
    add(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="partition, account, qos, constraint, hours, cpus (a task's), memory_gb (a node's), grace (seconds for "
        "saving before the time limit), parallel (runs of a sweep at once); or a YAML file of them",
    )
    add("--sweep", action="append", default=[], metavar="KEY=V,V", help="a run for each of the values; repeat to cross")
    add("--config", action="append", default=[], metavar="FILE", help="as for train")
    add("overrides", nargs="*", metavar="key=value", help="as for train; run= is the folder of a whole sweep")
    launch.set_defaults(run=_launch)


def _add_sample(sample: argparse.ArgumentParser) -> None:
    from mmldm_scale.sampling import arguments

    arguments.add_arguments(sample)
    sample.set_defaults(run=_sample)


def _add_reconstruct(reconstruct: argparse.ArgumentParser) -> None:
    from mmldm_scale.evaluation import arguments

    arguments.add_reconstruct_arguments(reconstruct)
    reconstruct.set_defaults(run=_reconstruct)


def _add_ablation(ablation: argparse.ArgumentParser) -> None:
    from mmldm_scale.evaluation import arguments

    arguments.add_ablation_arguments(ablation)
    ablation.set_defaults(run=_ablation)


def _add_export(export: argparse.ArgumentParser) -> None:
    add = export.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a run (its newest checkpoint), a checkpoint or its weights")
    add("--output", required=True, metavar="DIR", help="folder to be made")
    add("--weights", choices=["ema", "raw"], default="ema", help="averaged (the default) or as trained")
    add("--ema", type=float, metavar="LENGTH", help="the average of this length in place of the run's first")
    add("--at", type=int, metavar="SAMPLES", help="with --ema: as it was then; by default, when the checkpoint was")
    add("--format", choices=["mmldm", "diffusers"], default="mmldm", help="ours, or diffusers' with ours in it")
    export.set_defaults(run=_export)


def _add_plan(plan: argparse.ArgumentParser) -> None:
    from mmldm_scale.planning.hardware import CLUSTERS

    add = plan.add_argument
    add("--model", required=True, choices=["S", "B", "L", "autoencoder"])
    add("--gpu", required=True, choices=list(CLUSTERS))
    add("--nodes", type=int, default=1, metavar="N")
    add("--gpus-per-node", type=int, default=8, metavar="N")
    add("--network", type=float, metavar="GB/S", help="between two nodes, in one direction")
    add("--global-batch", type=int, metavar="N", help="in place of the configuration's")
    add("--samples", type=int, metavar="N", help="to train on, in place of the configuration's")
    add(
        "--config", action="append", default=[], metavar="FILE", help="YAML after the model's; an autoencoder needs one"
    )
    add("overrides", nargs="*", metavar="key=value", help="e.g. model.context_tokens=0")
    plan.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> int:
    from mmldm_scale.planning import report

    return report.run(args)


def _add_doctor(doctor: argparse.ArgumentParser) -> None:
    add = doctor.add_argument
    add("--quick", action="store_true", help="as the first step of a job, in seconds")
    add("--shards", action="append", default=[], metavar="DIR", help="a shard set to look at; give it again for more")
    add("--run", dest="folder", metavar="DIR", help="where a run goes; runs by default")
    add("--processes", type=int, metavar="N", help="start N on this machine, to try what is between them")
    add("--model", choices=list(TRAINABLES), default="dit", help="that the configuration is of")
    add("--config", action="append", default=[], metavar="FILE", help="as for train")
    add("overrides", nargs="*", metavar="key=value", help="as for train")
    doctor.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    if args.processes:
        from mmldm_scale.cluster import torchrun

        given = [("--shards", text) for text in args.shards] + [("--config", text) for text in args.config]
        given += [("--run", args.folder)] if args.folder else []
        options = [part for pair in given for part in pair] + (["--quick"] if args.quick else [])
        return torchrun.run(args.processes, ["doctor", "--model", args.model, *options, *args.overrides])
    die_with_launcher(signal.SIGTERM)
    from mmldm_scale.doctor import examination

    return examination.run(args)


def _add_status(status: argparse.ArgumentParser) -> None:
    status.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or one that holds runs")
    status.set_defaults(run=_status)


def _status(args: argparse.Namespace) -> int:
    from mmldm_scale.runs import status

    return status.run(args)


def _launch(args: argparse.Namespace) -> int:
    from mmldm_scale.launch import launch

    return launch.launch(args)


def _sample(args: argparse.Namespace) -> int:
    from mmldm_scale.sampling import job

    return job.run(args)


def _reconstruct(args: argparse.Namespace) -> int:
    from mmldm_scale.evaluation import reconstruction

    return reconstruction.run(args)


def _ablation(args: argparse.Namespace) -> int:
    from mmldm_scale.evaluation import ablation

    return ablation.run(args)


def _export(args: argparse.Namespace) -> int:
    from mmldm_scale.training.checkpoint import export

    return export.run(args)


def _train(args: argparse.Namespace) -> int:
    from mmldm_scale import config

    schema = config.load(registered(args.model).schema(), args.config, args.overrides)
    if args.print_config:
        print(config.dump(schema), end="")
        return 0
    same = ["train", args.model, *(part for file in args.config for part in ("--config", file)), *args.overrides]
    if args.launch:
        from mmldm_scale.cluster import requeue

        program = [*shlex.split(args.launch), sys.executable, "-m", "mmldm_scale.cli"]
        doctor = [*program, "doctor", "--quick", "--model", *same[1:]]
        return requeue.supervise([*program, *same], Path(schema.run), doctor)
    if args.processes:
        from mmldm_scale.cluster import torchrun

        return torchrun.run(args.processes, same)
    return _train_here(args.model, schema)


def _train_here(model: str, schema: object) -> int:
    die_with_launcher(signal.SIGTERM)
    from mmldm_scale.training import loop

    return loop.train(registered(model).build, schema)


def _model_info(args: argparse.Namespace) -> int:
    from mmldm_scale.models.autoencoder.sizes import autoencoder_info
    from mmldm_scale.models.flops import model_info
    from mmldm_scale.planning.memory_table import memory_table

    for table in (model_info, autoencoder_info, memory_table):
        print(table(), end="\n\n", flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``mmldm``; return its exit status.

    It is 0, 1 for our fault (with its traceback), 2 for the user's mistake, 74 for a file system that failed; and what
    training ends with when it was stopped (75) or hung (70).
    """
    args = _parse(arguments)
    try:
        return args.run(args)
    except UserError as error:
        _speak_once(f"mmldm: {error}")
        return error.status
    except KeyboardInterrupt:
        _speak_once("mmldm: interrupted; the last checkpoint stands")
        return 130
    except Exception:
        traceback.print_exc()
        _be_heard()
        return 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse ``arguments``; overrides may stand anywhere among the options, which argparse has no way to say."""
    top = parser()
    args, rest = top.parse_known_args(arguments)
    if any(text.startswith("-") for text in rest) or (rest and "overrides" not in args):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def _speak_once(line: str) -> None:
    """Print ``line``; a rank other than the first waits, since the launcher ends it if the first failed as well."""
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) > 0:
        time.sleep(10)
    print(line, file=sys.stderr, flush=True)
    _be_heard()


def _be_heard() -> None:
    """Under srun, wait a moment: it ends the step when a task exits, and may cut off what the task was still saying."""
    if "SLURM_STEP_ID" in os.environ:
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
