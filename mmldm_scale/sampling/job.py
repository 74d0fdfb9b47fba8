"""``mmldm sample``: an offline job that fills a folder with sampled videos.

The folder contains ``{task}_{index:06d}.mp4`` (with sound; of a model of video alone without, of a model of audio
alone a .wav in its place), ``inputs/`` with the clips that a2v and v2a started from,
``{task}.json`` with the settings of the samples, TensorBoard events of a few samples, and a gallery page. Only missing
samples are generated, in whole blocks of ``batch_size`` indices. So a job that was killed and run again, any number of
array tasks that share the blocks, and several jobs on one folder end with the same files.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmldm_scale.cluster import slurm
from mmldm_scale.common.atomic_files import full_disk_reason, write_whole
from mmldm_scale.common.device import choose_device
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.config import GenerationTask, MediaConfig, Sampling, arguments, load
from mmldm_scale.diffusion.guided_sampling import GIVEN
from mmldm_scale.media.clip import Clip, MediaError
from mmldm_scale.media.clip_file import suffix, write_clip
from mmldm_scale.media.vocoder import load_vocoder
from mmldm_scale.media.wav import decode_wav
from mmldm_scale.models import pretrained
from mmldm_scale.runs.event_file import EventFile
from mmldm_scale.runs.media_log import MediaWriter, show
from mmldm_scale.sampling import gallery
from mmldm_scale.sampling.inputs import Input, choose_inputs, list_videos, read_first_clip
from mmldm_scale.sampling.pipeline import DiTDescription, Pipeline, find_autoencoder

SHOWN = 4  # number of samples of a job that are written to TensorBoard
INPUTS = "inputs"  # folder, in the output folder, of the clips that a2v and v2a started from


def run(args: argparse.Namespace) -> int:
    """Run the job that ``args`` (of :mod:`mmldm_scale.sampling.arguments`) describe; return the exit status.

    Raises:
        UserError: arguments, weights, inputs or the output folder cannot be used.
    """
    settings = load(Sampling, arguments.files(args, "sample"), args.overrides)
    _check(args)
    description = DiTDescription.read(args.checkpoint)
    description.check_task(args.task)
    if args.label is not None:
        description.class_number(args.label)  # refuses an unknown class before anything is written
    part, parts = _parse_part(args.part) if args.part else slurm.array_share()
    videos = list_videos(args.input) if args.input else []
    record = _record(description, settings, videos, args.label)
    _check_record(args.output, args.task, record)
    if args.check:
        find_autoencoder(description, args.autoencoder)
        if settings.vocoder is not None:
            load_vocoder(settings.vocoder, description.media.audio)
        inputs_text = f" from {len(videos)} videos in {args.input}" if videos else ""
        print(f"{args.output}: {args.num_samples} samples of task {args.task}{inputs_text} can be made")
        return 0
    files = SampleFiles(args.output, args.task, suffix(description.shapes))
    blocks = _blocks(args.num_samples, settings.batch_size)[part::parts]
    if args.verify:
        files.remove_damaged(blocks, description.media)
    with Leases(args.output) as leases:
        incomplete = [block for block in blocks if files.missing(block)]
        if incomplete:
            pipeline = Pipeline.from_pretrained(args.checkpoint, settings, args.autoencoder, choose_device(args.device))
            _write_record(args.output, args.task, record)  # now that nothing can be refused
            need_sound, list_file = GIVEN[args.task] == "audio", args.output / f"{args.task}_inputs.json"
            needed, media = args.num_samples, description.media
            inputs = choose_inputs(list_file, videos, needed, media, need_sound, leases) if videos else []
            job = SamplingJob(pipeline, files, inputs, leases, args.label)
            job.generate(incomplete, settings.batch_size)
            if not files.missing(range(args.num_samples)):
                leases.clear()  # those of killed jobs
    try:
        gallery.write(args.output)
    except UserError as error:  # the disk is full; the samples are complete, and the next job writes the page
        print(f"the gallery is left out: {error}", file=sys.stderr, flush=True)
    count = sum(files.file(i).exists() for i in range(args.num_samples))
    print(f"{args.task}: {count} of {args.num_samples} samples are in {args.output}; index.html there shows them")
    return 0


@dataclasses.dataclass(frozen=True)
class SampleFiles:
    """The files of a job's samples.

    Attributes:
        folder: the output folder.
        task: the samples' task.
        suffix: ".mp4", or ".wav" for samples of sound alone.
    """

    folder: Path
    task: GenerationTask
    suffix: str

    def file(self, index: int) -> Path:
        """Return the file of sample ``index``."""
        return self.folder / f"{self.task}_{index:06d}{self.suffix}"

    def missing(self, block: range) -> bool:
        """Return whether any sample of ``block`` is missing."""
        return any(not self.file(index).exists() for index in block)

    def remove_damaged(self, blocks: Sequence[range], media: MediaConfig) -> None:
        """Remove those samples of ``blocks`` that do not decode whole, so that they are made again; print their names.

        So are samples whose inputs, which are made with them, do not.
        """
        for file in [self.file(index) for block in blocks for index in block]:
            parts = [file, self.folder / INPUTS / file.name] if GIVEN[self.task] else [file]
            damage = [part for part in map(functools.partial(_damage, media), parts) if part] if file.is_file() else []
            if damage:
                print(f"{file}: damaged, is made again: {damage[0]}", file=sys.stderr, flush=True)
                file.unlink(missing_ok=True)  # another job may have found the same

    def remove_leftovers(self, indices: range) -> None:
        """Remove what a killed job has left of samples ``indices``, which no other job makes, and of their inputs."""
        name = re.compile(rf"\.{self.task}_(\d{{6,}})\.(?:mp4|wav)(\.\w+)?\.tmp")
        for file in [*self.folder.glob(".*.tmp"), *(self.folder / INPUTS).glob(".*.tmp")]:
            match = name.fullmatch(file.name)
            if match and int(match[1]) in indices:
                file.unlink(missing_ok=True)


class SamplingJob:
    """Generates blocks of samples and writes them to a folder."""

    def __init__(
        self,
        pipeline: Pipeline,
        files: SampleFiles,
        inputs: list[Input],
        leases: Leases,
        label: str | None = None,
    ) -> None:
        self.pipeline, self.files, self.inputs, self._leases = pipeline, files, inputs, leases
        self._labels = [] if label is None else [label]
        self._shown = 0

    def generate(self, blocks: list[range], size: int) -> None:
        """Generate the samples of ``blocks`` and write those that are missing; leave blocks to jobs that make them.

        Each block is computed as one of ``size`` samples: in a batch of another size a sample would be another.
        """
        terminal = sys.stderr.isatty()
        with (
            EventFile(self.files.folder / "tensorboard") as events,
            tqdm(
                total=sum(map(len, blocks)), desc=self.files.task, unit=" samples", mininterval=0.2 if terminal else 10
            ) as progress,
        ):
            for block in blocks:
                name = f"{self.files.task}_{block.start:06d}"
                if self._leases.take(name):
                    self._generate(block, size, events)
                    self._leases.release(name)
                else:
                    tqdm.write(f"another job is making samples {block.start} to {block.stop - 1}", file=sys.stderr)
                progress.update(len(block))

    def _generate(self, block: range, size: int, events: EventFile) -> None:
        if not self.files.missing(block):  # another job has made them meanwhile
            return
        self.files.remove_leftovers(block)
        batch = range(block.start, block.start + size)
        sources = self._sources(batch)
        clips = self.pipeline.generate(self.files.task, batch, sources, self._labels * len(batch))
        for position, index in enumerate(block):
            self._write(index, clips[position], sources[position] if sources else None, events)

    def _sources(self, block: range) -> list[Clip]:
        if not self.inputs:
            return []
        media, need_sound = self.pipeline.media, GIVEN[self.files.task] == "audio"
        return [self.inputs[i % len(self.inputs)].read(media, need_sound) for i in block]

    def _write(self, index: int, clip: Clip, source: Clip | None, events: EventFile) -> None:
        """Write sample ``index`` if it is missing; its file is written last, so that it implies the others."""
        file = self.files.file(index)
        if file.exists():
            return
        if source is not None:
            _write_clip(self.files.folder / INPUTS / file.name, source, self.pipeline.media)
        _write_clip(file, clip, self.pipeline.media)
        if self._shown < SHOWN:
            self._shown += 1
            show(MediaWriter(events, 0), f"{self.files.task}/{index:06d}", clip, self.pipeline.media)


def _write_clip(file: Path, clip: Clip, media: MediaConfig) -> None:
    try:
        write_clip(file, clip, media)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {full_disk_reason(error) or error.strerror}") from None


def _damage(media: MediaConfig, file: Path) -> str:
    """Return why the video or sound ``file`` does not decode whole; empty if it does."""
    try:
        if file.suffix == ".wav":
            found = len(decode_wav(file.read_bytes()))
            return "" if found == media.audio_samples else f"{file}: {found} samples of {media.audio_samples}"
        read_first_clip(file, media, need_sound=False)
    except MediaError as error:
        return error.detail
    except ValueError as error:
        return f"{file}: {error}"
    except OSError as error:
        return f"{file}: {error.strerror}"
    return ""


def _blocks(samples: int, size: int) -> list[range]:
    return [range(start, min(start + size, samples)) for start in range(0, samples, size)]


def _check(args: argparse.Namespace) -> None:
    if args.num_samples < 1:
        raise UserError(f"--num-samples {args.num_samples}: must be at least 1")
    given = GIVEN[args.task]
    if given and args.input is None:
        raise UserError(f"--task {args.task} starts from {given}: it needs --input, a video or a folder of videos")
    if args.input is not None and not given:
        raise UserError(f"--task {args.task} takes no --input; a2v and v2a do")


def _parse_part(text: str) -> tuple[int, int]:
    """Return (index from 0, count) of "I/N"."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UserError(f"--part {text}: must be I/N with 1 ≤ I ≤ N, such as 1/4")
    return int(index) - 1, int(count)


def _record(
    description: DiTDescription, settings: Sampling, videos: Iterable[Path], label: str | None
) -> dict[str, Any]:
    """Return everything that samples depend on: two jobs may fill one folder only if it is the same for both."""
    return {
        "checkpoint": pretrained.fingerprint(description.folder),
        **_decisive(settings),
        "inputs": [str(video.resolve()) for video in videos],
        "label": label,
    }


def _decisive(settings: Sampling) -> dict[str, Any]:
    """Return the ``settings`` that samples depend on by more than rounding."""
    decisive = dataclasses.asdict(settings)
    del decisive["attention"], decisive["decoding"]["pictures"]
    return decisive


def _check_record(output: Path, task: GenerationTask, record: dict[str, Any]) -> None:
    """Check that ``output`` is a folder, and that its samples of ``task``, if any, were generated with this record.

    Raises:
        UserError: it contains samples of another checkpoint, settings or inputs; it cannot be written.
    """
    file = output / f"{task}.json"
    try:
        with _output_errors(output):
            output.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                return
            earlier = _decisive(Sampling()) | json.loads(file.read_text())  # settings added since had their defaults
    except (TypeError, ValueError):
        raise UserError(f"{file}: not the record of a sampling job; give another --output") from None
    changed = [key for key in record if earlier.get(key) != record[key]]
    if changed:
        keys = ", ".join(changed)
        raise UserError(f"{output}: contains {task} samples made with another {keys}; give another --output")


def _write_record(output: Path, task: GenerationTask, record: dict[str, Any]) -> None:
    """Write the record of ``task`` to ``output``, or check the one that another job has written meanwhile.

    Raises:
        UserError: as :func:`_check_record`.
    """
    file = output / f"{task}.json"
    with _output_errors(output):
        if record["inputs"]:
            (output / INPUTS).mkdir(exist_ok=True)
        if not file.exists():
            write_whole(file, json.dumps(record, indent=1).encode() + b"\n")
    _check_record(output, task, record)


@contextlib.contextmanager
def _output_errors(output: Path) -> Iterator[None]:
    """Turn the file system's refusals in the block into a UserError that names ``output``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{output}: cannot be used as output folder: {error.strerror}") from None
