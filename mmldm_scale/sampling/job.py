"""``mmldm sample``: an offline job that fills a folder with sampled videos.

The folder gets ``{task}_{index:06d}.mp4`` (with sound), ``inputs/`` with the clips that a2v and v2a started from,
``{task}.json`` with what the samples were made with, TensorBoard events of a few samples, and a gallery page. Only what
is missing is made, in whole blocks of ``batch_size`` indices, so a job that was killed and run again, and any number of
array tasks that share the blocks, end with the same files.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mmldm_scale.cluster import slurm
from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.device import choose_device
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import GenerationTask, MediaConfig, Sampling, load
from mmldm_scale.diffusion.sampler import GIVEN
from mmldm_scale.media.clip import Clip, MediaError
from mmldm_scale.media.encode import write_video
from mmldm_scale.models import pretrained
from mmldm_scale.runs.media_log import MediaWriter, show
from mmldm_scale.sampling import gallery
from mmldm_scale.sampling.inputs import list_videos, read_first_clip, usable
from mmldm_scale.sampling.pipeline import Description, Pipeline

SHOWN = 4  # samples of a job in TensorBoard
INPUTS = "inputs"


def run(args: argparse.Namespace) -> int:
    """Run the job that ``args`` (of :mod:`mmldm_scale.sampling.arguments`) ask for; return the exit status.

    Raises:
        UserError: arguments, weights, inputs or the output folder cannot work.
    """
    settings = load(Sampling, args.config, args.overrides)
    _check(args)
    description = Description.read(args.checkpoint)
    if args.label is not None:
        description.class_number(args.label)  # says at once if there is none
    share = _part(args.part) if args.part else slurm.array_share()
    videos = list_videos(args.input) if args.input else []
    _begin(args.output, args.task, _record(description, settings, videos, args.label))
    blocks = _blocks(args.num_samples, settings.batch_size)[share[0] :: share[1]]
    todo = [block for block in blocks if any(not _file(args.output, args.task, i).exists() for i in block)]
    if todo:
        inputs = usable(videos, args.num_samples, description.media, GIVEN[args.task] == "audio") if videos else []
        pipeline = Pipeline.from_pretrained(args.checkpoint, settings, args.autoencoder, choose_device(args.device))
        SamplingJob(pipeline, args.task, args.output, inputs, args.label).make(todo)
    page = gallery.write(args.output)
    there = sum(_file(args.output, args.task, i).exists() for i in range(args.num_samples))
    print(f"{args.task}: {there} of {args.num_samples} samples are in {args.output}; look at them in {page}")
    return 0


class SamplingJob:
    """Makes blocks of samples into a folder."""

    def __init__(
        self, pipeline: Pipeline, task: GenerationTask, output: Path, inputs: list[Path], label: str | None = None
    ) -> None:
        self.pipeline, self.task, self.output, self.inputs = pipeline, task, output, inputs
        self._labels = [] if label is None else [label]
        self._shown = 0

    def make(self, blocks: list[range]) -> None:
        """Make what is missing of ``blocks``."""
        terminal = sys.stderr.isatty()
        with (
            SummaryWriter(self.output / "tensorboard") as events,
            tqdm(
                total=sum(map(len, blocks)), desc=self.task, unit=" samples", mininterval=0.2 if terminal else 10
            ) as progress,
        ):
            for block in blocks:
                sources = self._sources(block)
                clips = self.pipeline.generate(self.task, block, sources, self._labels * len(block))
                for position, index in enumerate(block):
                    self._write(index, clips[position], sources[position] if sources else None, events)
                    progress.update()

    def _sources(self, block: range) -> list[Clip]:
        if not self.inputs:
            return []
        media, need_sound = self.pipeline.media, GIVEN[self.task] == "audio"
        try:
            return [read_first_clip(self.inputs[i % len(self.inputs)], media, need_sound) for i in block]
        except MediaError as error:
            raise UserError(f"--input: changed while the job ran: {error}") from None

    def _write(self, index: int, clip: Clip, source: Clip | None, events: SummaryWriter) -> None:
        """Write sample ``index`` if it is missing; its file comes last, so where it is, all of it is."""
        file = _file(self.output, self.task, index)
        if file.exists():
            return
        if source is not None:
            (self.output / INPUTS).mkdir(exist_ok=True)
            _write_clip(self.output / INPUTS / file.name, source, self.pipeline.media)
        _write_clip(file, clip, self.pipeline.media)
        if self._shown < SHOWN:
            self._shown += 1
            show(MediaWriter(events, 0), f"{self.task}/{index:06d}", clip, self.pipeline.media)


def _write_clip(file: Path, clip: Clip, media: MediaConfig) -> None:
    for left in file.parent.glob(f".{file.name}.*.tmp"):  # of a job that was killed; no other job writes this file
        left.unlink(missing_ok=True)
    try:
        write_video(file, clip.frames, media.fps, clip.waveform, media.audio.sample_rate)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None


def _file(output: Path, task: GenerationTask, index: int) -> Path:
    return output / f"{task}_{index:06d}.mp4"


def _blocks(samples: int, size: int) -> list[range]:
    return [range(start, min(start + size, samples)) for start in range(0, samples, size)]


def _check(args: argparse.Namespace) -> None:
    if args.num_samples < 1:
        raise UserError(f"--num-samples {args.num_samples}: at least 1 fits")
    given = GIVEN[args.task]
    if given and args.input is None:
        raise UserError(f"--task {args.task} starts from {given}: give --input FILE_OR_FOLDER of videos")
    if args.input is not None and not given:
        raise UserError(f"--task {args.task} takes no --input; a2v and v2a do")


def _part(text: str) -> tuple[int, int]:
    """Return (index from 0, count) of "I/N"."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UserError(f"--part {text}: I/N with 1 ≤ I ≤ N fits, such as 1/4")
    return int(index) - 1, int(count)


def _record(description: Description, settings: Sampling, videos: Iterable[Path], label: str | None) -> dict[str, Any]:
    """Return what decides how samples come out: two jobs may fill one folder only if it is the same for both."""
    decisive = dataclasses.asdict(settings)
    del decisive["attention"], decisive["decoding"]["pictures"]  # change nothing but rounding
    return {
        "checkpoint": pretrained.fingerprint(description.folder),
        **decisive,
        "inputs": [str(video.resolve()) for video in videos],
        "label": label,
    }


def _begin(output: Path, task: GenerationTask, record: dict[str, Any]) -> None:
    """Make ``output`` with its record for ``task``, or check that what it holds was made with the same.

    Raises:
        UserError: it holds samples of another checkpoint, settings or inputs; it cannot be written.
    """
    file = output / f"{task}.json"
    try:
        output.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            write_whole(file, json.dumps(record, indent=1).encode() + b"\n")
            return
        begun = json.loads(file.read_text())
    except OSError as error:
        raise UserError(f"{output}: cannot be used as output folder: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{file}: is not what a sampling job writes; another --output fits") from None
    changed = [key for key in record if begun.get(key) != record[key]]
    if changed:
        raise UserError(f"{output}: holds {task} samples made with another {', '.join(changed)}; another --output fits")
