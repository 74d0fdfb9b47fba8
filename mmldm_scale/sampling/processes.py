"""Several processes that share a sampling job, and how a signal ends one.

``mmldm sample --processes N`` starts N processes through :mod:`mmldm_scale.cluster.local_launcher`; each does what a
task of an array job does. This process shows the progress of all of them, which it sees in the output folder.
"""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from mmldm_scale.cluster import local_launcher, slurm
from mmldm_scale.common.device import choose_device, gpu_index
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.processes import LAUNCHER, follow_launcher, own_command
from mmldm_scale.config import arguments
from mmldm_scale.sampling.progress import Progress
from mmldm_scale.sampling.sample_files import SampleFiles
from mmldm_scale.sampling.stage_times import FOLDER, StageTimes

STOPPING = (signal.SIGINT, signal.SIGTERM)
STOPPED_STATUSES = tuple(128 + number for number in STOPPING)


class Stopped(UserError):
    """A signal ended the job; the status is 128 + its number, as shells have it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Signal(BaseException):
    """A signal in :data:`STOPPING` came; no ``except Exception`` takes it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True)
class Place:
    """Which of the processes that share a job this one is.

    Attributes:
        rank, count: among all of them.
        local_rank: among those of this machine.
        launched: by ``mmldm sample --processes``, which speaks for all of them.
    """

    rank: int
    count: int
    local_rank: int
    launched: bool

    @property
    def speaks(self) -> bool:
        """Whether this process shows progress and the result."""
        return self.rank == 0 and not self.launched

    def device(self, name: str) -> torch.device:
        """Return the device ``name`` (of ``--device``); of several GPUs the one of this process.

        Raises:
            UserError: torch cannot use it, or there are fewer GPUs than processes.
        """
        device = choose_device(name)
        if device.type == "cuda":
            if device.index is None:
                visible, processes = torch.cuda.device_count(), slurm.processes_on_node()
                device = torch.device("cuda", gpu_index(self.local_rank, visible, processes))
            torch.cuda.set_device(device)
        return device


def find_place() -> Place:
    """Return the place that the launcher's or SLURM's variables say; if ours started this process, end with it."""
    launched = LAUNCHER in os.environ
    follow_launcher()
    rank, local_rank, count = slurm.peers()
    return Place(rank, count, local_rank, launched)


@contextlib.contextmanager
def ended_by_signals(place: Place, summary: Callable[[], str]) -> Iterator[None]:
    """In the block, have SIGINT and SIGTERM unwind the stack, so that leases and unfinished files are removed.

    Args:
        summary: returns what is made so far, for the message; a launched process leaves it to its launcher.

    Raises:
        Stopped: a signal came.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in STOPPING:  # the launcher may send a second one meanwhile; the user's second one ends at once
            signal.signal(each, signal.SIG_IGN if place.launched else signal.SIG_DFL)
        raise _Signal(number)

    before = {number: signal.getsignal(number) for number in STOPPING}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # a shell's background jobs ignore SIGINT
            signal.signal(number, stop)
    try:
        yield
    except _Signal as stopped:
        status = 128 + stopped.number
        if place.launched:
            sys.exit(status)
        raise stopped_by(status, summary()) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped_by(status: int, summary: str) -> Stopped:
    """Return the error of a job that a signal ended with ``status``."""
    name = signal.Signals(status - 128).name
    return Stopped(f"stopped by {name}: {summary}; the same command makes the others", status)


def check_processes(count: int, device: str) -> None:
    """Raise UserError if ``count`` processes cannot each have a GPU of their own, and ``device`` asks for GPUs."""
    if count == 1 or device == "cpu" or not torch.cuda.is_available():
        return
    if device not in ("auto", "cuda"):
        raise UserError(f"--device {device}: is one device; with --processes {count} it must be auto, cuda or cpu")
    visible = torch.cuda.device_count()
    if visible > 1:
        gpu_index(count - 1, visible, count)
    else:
        raise UserError(f"--processes {count}: this machine shows 1 GPU; each process needs one of its own")


def parse_part(text: str) -> tuple[int, int]:
    """Return (index from 0, count) of "I/N", the value of ``--part``; raise UserError if it is none."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UserError(f"--part {text}: must be I/N with 1 ≤ I ≤ N, such as 1/4")
    return int(index) - 1, int(count)


def run(args: argparse.Namespace, checkpoint: str, part: str, files: SampleFiles, blocks: Sequence[range]) -> int:
    """Make a part of the samples in ``args.processes`` processes; return the exit status of the launcher.

    Args:
        args: of the job.
        checkpoint: the weights folder, the same for all, even if the run goes on.
        part: "I/N": which part.
        blocks: of the whole job, for the progress.
    """
    command = [*own_command(), "sample", *_words(args, checkpoint, part)]
    with tempfile.TemporaryDirectory(prefix="mmldm-") as times:
        os.environ[FOLDER] = times
        try:
            with Progress(files, blocks, lambda: StageTimes.read(Path(times))) as progress:
                return local_launcher.launch(command, args.processes, progress.look)
        finally:
            del os.environ[FOLDER]


def _words(args: argparse.Namespace, checkpoint: str, part: str) -> list[str]:
    """Return the arguments of a process that shares the job of ``args``."""
    options = {
        "--checkpoint": checkpoint,
        "--task": args.task,
        "--num-samples": args.num_samples,
        "--output": args.output,
        "--input": args.input,
        "--window": args.window,
        "--seconds": args.seconds,
        "--label": args.label,
        "--prompt": args.prompt,
        "--prompts": args.prompts,
        "--autoencoder": args.autoencoder,
        "--device": args.device,
        "--part": part,
    }
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    return [*given, *(["--lossless"] if args.lossless else []), *arguments.words(args)]
