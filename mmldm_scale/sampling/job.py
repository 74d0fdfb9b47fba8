"""``mmldm sample``: an offline job that fills a folder with sampled videos.

The folder contains ``{task}_{index:06d}.mp4`` (with sound; of a model of video alone without, of a model of audio
alone a .wav in its place) with a .json beside each, ``inputs/`` with the clips that samples started from,
``{task}.json`` with the settings of the samples, TensorBoard events of a few samples, and a gallery page. With
``--lossless``, ``lossless/{task}/`` has the same samples as a shard set, one tar a block. Only missing samples are
generated, in whole blocks of ``batch_size`` indices. So a job that was killed and run again, any number of
processes and array tasks that share the blocks, and several jobs on one folder end with the same files.
"""

import argparse
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmldm_scale.cluster import slurm
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.config import Sampling, arguments, load
from mmldm_scale.diffusion.tasks import TASKS
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.clip_file import suffix
from mmldm_scale.media.vocoder import load_vocoder
from mmldm_scale.runs.event_file import EventFile
from mmldm_scale.runs.media_log import MediaWriter, show
from mmldm_scale.sampling import gallery, processes
from mmldm_scale.sampling.conditions import (
    check_arguments,
    count_samples,
    find_prompts,
    inputs_file,
    wanted_inputs,
)
from mmldm_scale.sampling.inputs import Input, Wanted, check_sets, choose_inputs, list_inputs
from mmldm_scale.sampling.lossless import LosslessSet
from mmldm_scale.sampling.pipeline import DiTDescription, Pipeline, check_settings, find_autoencoder
from mmldm_scale.sampling.prompts import TextContexts
from mmldm_scale.sampling.records import VERSION, SampleRecords, check_folder, folder_record, write_folder_record
from mmldm_scale.sampling.sample_files import SampleFiles

SHOWN = 4  # number of samples of a job that are written to TensorBoard


@dataclass(frozen=True)
class _Plan:
    """A job whose arguments were checked.

    Attributes:
        candidates: the files and sets that inputs are taken from; empty: the task starts from nothing.
        wanted: what each input must have.
        seconds: length of the samples; None: one clip.
        contexts: the prompts of the samples; None: they have none.
        record: everything that the samples depend on.
        begun_by: version of the program that began the folder; None if it recorded none.
        part, parts: which share of the blocks this job makes, from 0, of how many.
    """

    args: argparse.Namespace
    settings: Sampling
    description: DiTDescription
    candidates: list[Path]
    wanted: Wanted
    seconds: float | None
    contexts: TextContexts | None
    record: dict[str, Any]
    begun_by: str | None
    files: SampleFiles
    part: int
    parts: int

    @property
    def blocks(self) -> list[range]:
        """The blocks of this job's share."""
        return self.all_blocks[self.part :: self.parts]

    @property
    def all_blocks(self) -> list[range]:
        """The blocks of all shares."""
        return _blocks(self.args.num_samples, self.settings.batch_size)

    @property
    def incomplete(self) -> list[range]:
        """Those of the blocks that lack a sample."""
        return [block for block in self.blocks if self.files.missing(block)]

    def summary(self) -> str:
        """Return how many samples there are, as a phrase."""
        count = sum(map(self.files.made, self.all_blocks))
        return f"{count} of {self.args.num_samples} samples are in {self.args.output}"


def run(args: argparse.Namespace) -> int:
    """Run the job that ``args`` (of :mod:`mmldm_scale.sampling.arguments`) describe; return the exit status.

    Raises:
        UserError: arguments, weights, inputs or the output folder cannot be used; a signal ended the job (Stopped).
    """
    place = processes.find_place()
    plan = _plan(args)
    if args.check:
        return _report_check(plan)
    with processes.ended_by_signals(place, plan.summary):
        if args.verify:
            plan.files.remove_damaged(plan.blocks)
        with Leases(args.output) as leases:
            records = _records(plan, place, leases)
            if args.verify and plan.files.lossless is not None:
                plan.files.lossless.remove_damaged(plan.blocks, records.problem, leases, plan.files.lease)
            if place.speaks:
                _announce_repeated(plan)
            if args.processes == 1 and plan.incomplete:
                _generate(plan, place, records, leases)
        if args.processes > 1 and plan.incomplete:
            part = f"{plan.part + 1}/{plan.parts}"
            status = processes.run(args, str(plan.description.folder), part, plan.files, plan.incomplete)
            if status in processes.STOPPED_STATUSES:
                raise processes.stopped_by(status, plan.summary())
            if status:
                return status  # a process has printed the reason
        if not place.launched:
            _finish_lossless(plan, records)
            _write_gallery(plan)
        if place.speaks:
            tars = f", lossless/{args.task} has them without loss" if args.lossless else ""
            print(f"{args.task}: {plan.summary()}; index.html there shows them{tars}")
    return 0


def _plan(args: argparse.Namespace) -> _Plan:
    """Check everything that needs no weights and no media."""
    settings = load(Sampling, arguments.files(args, "sample"), args.overrides)
    check_arguments(args)
    description = DiTDescription.read(args.checkpoint)
    task = TASKS[args.task]
    description.check_task(args.task)
    media = description.sample_media(args.seconds)
    seconds = None if media == description.media else args.seconds
    if args.label is not None:
        description.class_number(args.label)  # refuses an unknown class before anything is written
    check_settings(description, settings)
    part, parts = processes.parse_part(args.part) if args.part else slurm.array_share()
    wanted = wanted_inputs(args, media if task.given else description.media, seconds if task.given else None)
    candidates = list_inputs(args.input, task.needs) if task.needs else []
    check_sets(candidates, wanted)
    prompts = find_prompts(args, description, settings)
    more = {"window": wanted.window if args.window else None, "seconds": seconds, "prompts": prompts or None}
    record = folder_record(description, settings, candidates, args.label, more)
    begun_by = check_folder(args.output, args.task, record).get(VERSION)
    if args.num_samples is None:
        args.num_samples = count_samples(args, candidates, wanted, prompts)
    lossless = LosslessSet(args.output, args.task, media, settings.batch_size) if args.lossless else None
    made = [name for name in task.result if name in description.shapes]
    files = SampleFiles(args.output, args.task, suffix(made), media, wanted.media, lossless)
    encoder = settings.text_encoder
    contexts = TextContexts(args.output, encoder, description.model, prompts) if prompts and encoder else None
    return _Plan(
        args, settings, description, candidates, wanted, seconds, contexts, record, begun_by, files, part, parts
    )


def _report_check(plan: _Plan) -> int:
    """Print what ``mmldm sample --check`` has found; return 0.

    Raises:
        UserError: the autoencoder or the vocoder is missing.
    """
    args, vocoder = plan.args, plan.settings.vocoder
    find_autoencoder(plan.description, args.autoencoder)
    if vocoder is not None:
        load_vocoder(vocoder, plan.description.media.audio)
    inputs = f" from {len(plan.candidates)} files in {args.input}" if plan.candidates else ""
    inputs = f" from the set {args.input}" if plan.candidates == [args.input] and args.input.is_dir() else inputs
    print(f"{args.output}: {args.num_samples} samples of task {args.task}{inputs} can be made")
    return 0


def _records(plan: _Plan, place: processes.Place, leases: Leases) -> SampleRecords:
    """Return the records of the job's samples, once its inputs are looked at; complete those of existing samples."""
    args, blocks = plan.args, plan.blocks
    inputs: list[Input] = []
    if plan.candidates and (args.verify or plan.incomplete or plan.files.record_missing(blocks)):
        inputs = choose_inputs(inputs_file(args), plan.candidates, args.num_samples, plan.wanted, leases)
    folder = args.input.parent if args.input and args.input.is_file() else args.input
    records = SampleRecords(
        plan.files,
        plan.description,
        plan.settings,
        plan.record,
        plan.begun_by,
        inputs,
        folder,
        plan.wanted.media.seconds,
        plan.contexts,
    )
    if not place.launched:  # else the launcher has done it
        records.complete(blocks, args.verify, leases)
    return records


def _announce_repeated(plan: _Plan) -> None:
    """Print how many samples are made again because they are not in the lossless set."""
    files = plan.files
    made = [i for block in plan.blocks if files.shard_missing(block) for i in block if files.file(i).exists()]
    if made:
        print(
            f"{files.folder}: {len(made)} {files.task} samples are in no lossless tar yet; they are made again for "
            "it, their files stay",
            file=sys.stderr,
            flush=True,
        )


def _generate(plan: _Plan, place: processes.Place, records: SampleRecords, leases: Leases) -> None:
    """Generate the samples that are missing."""
    args, device = plan.args, place.device(plan.args.device)
    if plan.contexts is not None:
        plan.contexts.prepare(leases, device)
    pipeline = Pipeline.from_pretrained(plan.description.folder, plan.settings, args.autoencoder, device)
    write_folder_record(args.output, args.task, plan.record, leases)  # now that nothing can be refused
    if plan.files.lossless is not None:
        plan.files.lossless.begin(records.made_with, leases)
    blocks = plan.incomplete
    own = blocks[place.rank :: place.count]
    others = [block for block in blocks if block not in own]  # helped with if their processes are slower
    job = SamplingJob(pipeline, plan, records, leases, place)
    job.generate([*own, *others], plan.settings.batch_size)
    if not any(map(plan.files.missing, plan.all_blocks)):
        leases.clear()  # those of killed jobs


def _finish_lossless(plan: _Plan, records: SampleRecords) -> None:
    """Write the manifest of the lossless set once no sample is missing; it is the last job's work."""
    if plan.files.lossless is not None:
        with Leases(plan.args.output) as leases:
            plan.files.lossless.finish(plan.args.num_samples, records.made_with, leases)


def _write_gallery(plan: _Plan) -> None:
    folder: Path = plan.args.output
    try:
        with Leases(folder) as leases, leases.writing(folder / gallery.PAGE):
            gallery.write(folder, plan.description.media)
    except UserError as error:  # the disk is full; the samples are complete, and the next job writes the page
        print(f"the gallery is left out: {error}", file=sys.stderr, flush=True)


class SamplingJob:
    """Generates blocks of samples and writes them to a folder."""

    def __init__(
        self,
        pipeline: Pipeline,
        plan: _Plan,
        records: SampleRecords,
        leases: Leases,
        place: processes.Place,
    ) -> None:
        self.pipeline, self.records, self._leases, self._place = pipeline, records, leases, place
        self.files, self._wanted = plan.files, plan.wanted
        self._contexts, self._seconds = plan.contexts, plan.seconds
        self._labels = [] if plan.args.label is None else [plan.args.label]
        self._shown = 0

    def generate(self, blocks: list[range], size: int) -> None:
        """Generate the samples of ``blocks`` and write those that are missing; leave blocks to jobs that make them.

        Each block is computed as one of ``size`` samples: in a batch of another size a sample would be another.
        """
        interval = 0.2 if sys.stderr.isatty() else 10
        with (
            EventFile(self.files.folder / "tensorboard") if self._place.rank == 0 else nullcontext() as events,
            tqdm(
                total=sum(map(len, blocks)),
                desc=self.files.task,
                unit=" samples",
                mininterval=interval,
                disable=not self._place.speaks,
            ) as progress,
        ):
            for block in blocks:
                if self._leases.take(self.files.lease(block)):
                    self._generate(block, size, events)
                    self._leases.release(self.files.lease(block))
                elif self._place.count == 1:
                    tqdm.write(f"another job is making samples {block.start} to {block.stop - 1}", file=sys.stderr)
                progress.update(len(block))

    def _generate(self, block: range, size: int, events: EventFile | None) -> None:
        if not self.files.missing(block):  # another process has made them meanwhile
            return
        self.files.remove_leftovers(block)
        batch = range(block.start, block.start + size)
        sources = self._sources(batch)
        embeddings = [self._contexts.embedding(index) for index in batch] if self._contexts else []
        labels = self._labels * len(batch)
        clips = self.pipeline.generate(self.files.task, batch, sources, labels, embeddings, self._seconds)
        for position, index in enumerate(block):
            self._write(index, clips[position], sources[position] if sources else None, events)
        if self.files.lossless is not None and self.files.lossless.missing(block):
            contents = [self.records.content(index) for index in block]
            self.files.lossless.write(block, clips[: len(block)], contents, self._leases, self.files.lease(block))

    def _sources(self, block: range) -> list[Clip]:
        """Return what the samples ``block`` start from; [] if the task takes no input."""
        return [source.read(self._wanted) for source in map(self.records.source, block) if source]

    def _write(self, index: int, clip: Clip, source: Clip | None, events: EventFile | None) -> None:
        """Write sample ``index`` if it is missing; its file is written last, so that it implies the others."""
        if self.files.file(index).exists():
            return
        if source is not None:
            self.files.write_input(index, source)
        self.records.write(index)
        self.files.write(index, clip)
        if events is not None and self._shown < SHOWN:
            self._shown += 1
            show(MediaWriter(events, 0), f"{self.files.task}/{index:06d}", clip, self.files.media)


def _blocks(samples: int, size: int) -> list[range]:
    return [range(start, min(start + size, samples)) for start in range(0, samples, size)]
