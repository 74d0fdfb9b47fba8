"""What the arguments of ``mmldm sample`` say that samples start from and show, checked before anything is loaded."""

import argparse
from pathlib import Path

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.config import MediaConfig, Sampling
from mmldm_scale.diffusion.tasks import TASKS
from mmldm_scale.sampling import processes
from mmldm_scale.sampling.description import DiTDescription
from mmldm_scale.sampling.inputs import Wanted, choose_inputs, count_inputs, parse_window
from mmldm_scale.sampling.prompts import check_encoder, read_prompts


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError if options do not fit the task, or one another."""
    if args.num_samples is not None and args.num_samples < 1:
        raise UserError(f"--num-samples {args.num_samples}: must be at least 1")
    needs = TASKS[args.task].needs
    if needs and args.input is None:
        kinds = "a video, a sound file or a folder of them" if needs == ("audio",) else "a video or a folder of videos"
        given = " and ".join(needs)
        raise UserError(f"--task {args.task} starts from {given}: it needs --input, {kinds}, or a shard set of clips")
    if not needs and (args.input, args.window) != (None, None):
        option = "--window" if args.input is None else "--input"
        others = ", ".join(task.name for task in TASKS.values() if task.needs)
        raise UserError(f"--task {args.task} takes no {option}; {others} do")
    if not needs and args.num_samples is None and args.prompt is None and args.prompts is None:
        raise UserError(f"--task {args.task}: needs --num-samples")
    processes.check_processes(args.processes, args.device)


def wanted_inputs(args: argparse.Namespace, media: MediaConfig, seconds: float | None) -> Wanted:
    """Return what the task of ``args`` needs of its inputs, of the format ``media``."""
    task = TASKS[args.task]
    window = parse_window(args.window) if args.window else task.window
    return Wanted(task.needs, media, window, seconds)


def find_prompts(args: argparse.Namespace, description: DiTDescription, settings: Sampling) -> list[str]:
    """Return the prompts of ``args``; [] if there are none.

    Raises:
        UserError: the model takes no texts, or the encoder is not that of its training.
    """
    if args.prompt is None and args.prompts is None:
        return []
    if description.context != "text":
        option = "--prompt" if args.prompts is None else f"--prompts {args.prompts}"
        raise UserError(
            f"{option}: the model in {description.folder} was not trained on texts, but context.kind="
            f"{description.context}"
        )
    check_encoder(settings.text_encoder, description.model)
    return [args.prompt] if args.prompt is not None else read_prompts(args.prompts)


def count_samples(args: argparse.Namespace, candidates: list[Path], wanted: Wanted, prompts: list[str]) -> int:
    """Return the number of samples if none is given: that of the inputs that can be used, or of the prompts."""
    if not candidates:
        return len(prompts)
    if args.check:  # writes nothing
        return count_inputs(candidates, wanted)
    with Leases(args.output) as leases:
        return len(choose_inputs(inputs_file(args), candidates, None, wanted, leases))


def inputs_file(args: argparse.Namespace) -> Path:
    """Return the record of the inputs of the job of ``args``."""
    output: Path = args.output
    return output / f"{args.task}_inputs.json"
