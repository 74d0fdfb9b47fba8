"""The command ``mmldm``: its sub-commands, and how each of them ends. The packages that do the work own the options.

``mmldm --help`` and the parsing of arguments load neither torch nor DeepSpeed: a command's module is imported when the
command runs.
"""

import argparse
import difflib
import importlib
import importlib.metadata
import itertools
import sys
import time
import traceback
from collections.abc import Callable, Sequence

from mmldm_scale.cluster import slurm
from mmldm_scale.common.addresses import add_path, path_or_url
from mmldm_scale.common.errors import LostContact, UserError, refused_paths
from mmldm_scale.common.processes import READER_GONE, end_quietly_without_reader, flushed_output, prepare_command
from mmldm_scale.doctor import command as doctor
from mmldm_scale.evaluation import arguments as evaluation
from mmldm_scale.evaluation.rating import arguments as rating
from mmldm_scale.launch import arguments as launch
from mmldm_scale.planning import arguments as planning
from mmldm_scale.sampling import arguments as sampling
from mmldm_scale.trackers import arguments as trackers

OTHER_COMMANDS = "mmldm_scale.commands"  # entry points of other packages: functions of a command's arguments
OTHER_RANK_WAIT = 10.0  # seconds that a rank waits for rank 0 to print the same error
LOCAL_RANK_WAIT = 0.2  # seconds more for each local rank: of several that fail together the launcher hears one first
LOST_CONTACT_WAIT = 20.0  # seconds that a rank waits for another rank, or its launcher, to print the cause
EPILOG = """\
examples:
  mmldm train dit --preset S --preset cluster/a800 shards=data/audioset/latents run=runs/dit_S
  mmldm train dit --preset demo --processes 2 shards=demo/latents
  mmldm launch train dit --nodes 16 --gpus-per-node 8 --preset L shards=data/audioset/latents run=runs/dit_L
  mmldm sample --checkpoint runs/dit_S --task svg --num-samples 16 --output runs/dit_S/samples
  mmldm evaluate --samples runs/dit_S/samples --reference data/landscape/clips --protocol packaged --output runs/figures
  mmldm reconstruct --checkpoint runs/autoencoder --input data/landscape/clips --num-samples 256 --output runs/quality
  mmldm table 1 --data data --output runs/table1 runs.landscape=runs/dit_L weights.i3d=weights/i3d_pretrained_400.pt
  mmldm rate serve --study studies/landscape --set ours=runs/dit_S/samples --set theirs=data/theirs
  mmldm export --checkpoint runs/dit_S --ema 0.08 --output weights/dit_S
  mmldm status runs/dit_S
  mmldm follow runs/dit_S --to wandb
  mmldm doctor --shards data/audioset/latents --run runs/dit_S
  mmldm model-info

ways to start a training:
  mmldm train …                  in this process
  mmldm train … --processes N    in N processes on this machine
  mmldm launch train …           as a SLURM job, or a sweep as an array of jobs
  mmldm train … --under srun     inside a SLURM job: as its tasks; requeues the job after a failure (slurm/*.sh)
"""


def _add_export_arguments(export: argparse.ArgumentParser) -> None:
    add = export.add_argument
    text = "a run (its newest checkpoint), a checkpoint or its weights"
    add_path(export, "--checkpoint", required=True, metavar="DIR", help=text)
    add(
        "--output",
        type=path_or_url,
        required=True,
        metavar="DIR",
        help="folder or URL, missing or empty",
    )
    add("--weights", choices=["ema", "raw"], default="ema", help="averaged (the default) or as trained")
    add("--ema", type=float, metavar="LENGTH", help="length of the average; default: the first of training.ema_lengths")
    add("--at", type=int, metavar="SAMPLES", help="with --ema: samples seen at the average's end; default: all")
    add("--format", choices=["mmldm", "diffusers"], default="mmldm", help="file layout: ours, or that of diffusers")
    text = "diffusers, of a dit: where its autoencoder is; default: where it was when the latents were made"
    add_path(export, "--autoencoder", metavar="DIR", help=text)
    add_path(export, "--vocoder", metavar="PATH", help="diffusers, of a dit: a HiFi-GAN for its sound")
    add("--license", metavar="ID", help="diffusers, of a dit: licence in the model card; default: unknown")
    text = "diffusers, of a dit: upload the folder to this repository of the Hugging Face Hub, new ones private"
    add("--push-to-hub", metavar="OWNER/NAME", help=text)


def _export(args: argparse.Namespace) -> int:
    from mmldm_scale.sampling import diffusers_format
    from mmldm_scale.trainables import registry
    from mmldm_scale.training.checkpoint import export

    layout = diffusers_format.layout(args)
    records = [registry.registered(name) for name in registry.names()]
    prefixes = {record.weights: record.weights_prefix for record in records}
    status = export.run(args, prefixes, layout)
    if args.push_to_hub:
        diffusers_format.push_to_hub(args)
    return status


def _add_status_arguments(status: argparse.ArgumentParser) -> None:
    add_path(status, "runs", nargs="+", metavar="RUN", help="a run's folder, or a folder of runs")


def _status(args: argparse.Namespace) -> int:
    from mmldm_scale.runs import status

    return status.run(args, slurm.queued_jobs)


def _run(module: str) -> Callable[[argparse.Namespace], int]:
    """Return a function that imports ``module`` and calls its ``run``."""
    return lambda args: importlib.import_module(f"mmldm_scale.{module}").run(args)


COMMANDS = (  # name, what it does, adds its options, runs it and returns the exit status
    (
        "train",
        "train a kl_vae, an autoencoder, a dit, or distil a decoder",
        launch.add_train_arguments,
        _run("launch.train"),
    ),
    ("launch", "submit a training, or a sweep, as SLURM jobs", launch.add_launch_arguments, _run("launch.launch")),
    ("sample", "make videos with sound from a trained dit", sampling.add_arguments, _run("sampling.job")),
    (
        "gallery",
        "write a page that shows the samples of several folders side by side",
        sampling.add_gallery_arguments,
        _run("sampling.gallery"),
    ),
    (
        "evaluate",
        "measure samples under a named protocol: FVD, KVD, FAD, KAD and others",
        evaluation.add_evaluate_arguments,
        _run("evaluation.evaluate"),
    ),
    (
        "evaluate-run",
        "sample from the checkpoints of a run and measure the samples, while it trains or afterwards",
        evaluation.add_evaluate_run_arguments,
        _run("evaluation.run_evaluation.command"),
    ),
    (
        "seams",
        "measure the jumps of long samples where their windows meet",
        evaluation.add_seams_arguments,
        _run("evaluation.seams"),
    ),
    (
        "memorisation",
        "find samples that are closer to a training clip than other real clips are",
        evaluation.add_memorisation_arguments,
        _run("evaluation.memorisation.command"),
    ),
    (
        "reconstruct",
        "measure how well an autoencoder reconstructs clips",
        evaluation.add_reconstruct_arguments,
        _run("evaluation.reconstruction"),
    ),
    (
        "ablation",
        "train variants of an autoencoder and compare them (Tables 5 and 6)",
        evaluation.add_ablation_arguments,
        _run("evaluation.ablation"),
    ),
    (
        "rate",
        "have people rate clips in a browser, and evaluate their votes",
        rating.add_arguments,
        _run("evaluation.rating.command"),
    ),
    (
        "table",
        "make one of the paper's tables: sample, train and measure what is missing",
        evaluation.add_table_arguments,
        _run("evaluation.tables.command"),
    ),
    (
        "export",
        "write the weights of a run to a folder: averaged, as trained, or for diffusers",
        _add_export_arguments,
        _export,
    ),
    ("plan", "predict memory, traffic and time of a training", planning.add_arguments, _run("planning.report")),
    ("doctor", "check the machine, the environment and the data", doctor.add_arguments, doctor.run),
    ("status", "show the progress of runs", _add_status_arguments, _status),
    (
        "follow",
        "send what a run logs to W&B, SwanLab, trackio or MLflow, while it trains or afterwards",
        trackers.add_arguments,
        _run("trackers.follow"),
    ),
    (
        "model-info",
        "print the models' sizes, FLOPs and memory in training",
        planning.add_model_info_arguments,
        _run("planning.model_info"),
    ),
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="mmldm",
        description="Train MM-LDM, a multi-modal latent diffusion model for videos with sound, and sample from it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, does, add_arguments, run in COMMANDS:
        command = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
        add_arguments(command)
        command.set_defaults(run=run)
    commands.add_parser("shard", help="prepare data: videos into clip and latent shards", add_help=False)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``mmldm`` with ``arguments`` (default: those of the process); return its exit status.

    The status is 0; 1 for an error of ours, printed with its traceback; 2 for a mistake of the user; 74 for a file
    system that failed; 141 if nobody reads its output any more. A training also ends with 75 if it was stopped and
    with 70 if it hung.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with flushed_output():
            prepare_command()
            if arguments[:1] == ["shard"]:
                return _shard(arguments[1:])
            args = _parse(arguments)
            with refused_paths():
                status: int = args.run(args)
            return status
    except UserError as error:
        _print_once("\n".join(f"mmldm: {line}" for line in str(error).splitlines()))  # a line for each mistake
        return error.status
    except KeyboardInterrupt:
        _print_once("mmldm: interrupted")
        return 130
    except LostContact as error:
        reason = " ".join(str(error).split())[:200]
        _print_once(f"mmldm: rank {slurm.rank()} has lost contact with another rank: {reason}", LOST_CONTACT_WAIT)
        return 1
    except Exception as error:
        if isinstance(error, BrokenPipeError) and end_quietly_without_reader():
            return READER_GONE
        traceback.print_exc()
        _wait_for_srun()
        return 1


def _shard(arguments: Sequence[str]) -> int:
    """Run the command of the package for data preparation, which this one must not import, if it is installed."""
    for command in importlib.metadata.entry_points(group=OTHER_COMMANDS, name="shard"):
        status: int = command.load()(arguments)
        return status
    raise UserError("shard: mmldm_data_tools is not installed; from a clone, run python data_tools/shard.py")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse ``arguments``; unlike argparse by itself, allow overrides anywhere among the options."""
    top = parser()
    _check_command(arguments)
    args, rest = top.parse_known_args(arguments)
    if "trainable" in args:
        _check_options(rest, args.trainable)
    if any(text.startswith("-") for text in rest) or (rest and "overrides" not in args):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def _check_command(arguments: Sequence[str]) -> None:
    """Raise UserError, with the nearest command, if ``arguments`` begin with a word that is none."""
    names = [*(name for name, *_ in COMMANDS), "shard"]
    if not arguments or arguments[0].startswith("-") or arguments[0] in names:
        return
    nearest = difflib.get_close_matches(arguments[0], names, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"must be one of {', '.join(names)}"
    raise UserError(f"{arguments[0]}: no such command; {hint}")


def _check_options(rest: Sequence[str], trainable: str) -> None:
    """Raise UserError, with the right form, if a word of ``rest`` is a configuration key in the form of an option."""
    for word, following in itertools.zip_longest(rest, rest[1:], fillvalue=""):
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            continue
        from mmldm_scale.config.compose import keys_named
        from mmldm_scale.trainables.registry import registered

        keys = keys_named(registered(trainable).schema(), name.replace("-", "_"))
        if keys:
            shown = value if equals else "VALUE" if following.startswith("-") else following or "VALUE"
            forms = " or ".join(f"{key}={shown}" for key in keys)
            raise UserError(f"{word}: no such option; settings have the form key=value, without dashes: {forms}")


def _print_once(line: str, wait: float | None = None) -> None:
    """Print ``line`` to standard error, unless the launcher ends this rank first, because another rank has failed, too.

    Args:
        wait: seconds for that; by default none on rank 0, :data:`OTHER_RANK_WAIT` on the others.
    """
    if wait is None:
        rank, local_rank, _ = slurm.peers()
        wait = OTHER_RANK_WAIT + LOCAL_RANK_WAIT * local_rank if rank > 0 else 0.0
    time.sleep(wait)
    print(line, file=sys.stderr, flush=True)
    _wait_for_srun()


def _wait_for_srun() -> None:
    """Under srun, wait a second: it ends the step when a task exits, and may lose the last lines of the task."""
    if slurm.in_step():
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
