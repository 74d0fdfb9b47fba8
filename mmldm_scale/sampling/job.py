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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmldm_scale.cluster import slurm
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.config import Sampling, arguments, load
from mmldm_scale.diffusion.tasks import TASKS
from mmldm_scale.media.clip_file import suffix
from mmldm_scale.media.vocoder import load_vocoder
from mmldm_scale.models import pretrained
from mmldm_scale.sampling import gallery, processes
from mmldm_scale.sampling.blocks import Conditions, SamplingJob
from mmldm_scale.sampling.conditions import (
    check_arguments,
    count_samples,
    find_prompts,
    inputs_file,
    wanted_inputs,
)
from mmldm_scale.sampling.costs import sample_cost
from mmldm_scale.sampling.description import DiTDescription, check_settings, distilled_decoder, find_autoencoder
from mmldm_scale.sampling.inputs import Input, Wanted, check_sets, choose_inputs, list_inputs, set_fingerprint
from mmldm_scale.sampling.lossless import LosslessSet
from mmldm_scale.sampling.pipeline import Pipeline
from mmldm_scale.sampling.prompts import TextContexts
from mmldm_scale.sampling.records import (
    INPUT_SET,
    SIGNAL_DECODER,
    VERSION,
    SampleRecords,
    check_folder,
    folder_record,
    write_folder_record,
)
from mmldm_scale.sampling.sample_files import SampleFiles


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
                _announce_cost(plan)
            if args.processes == 1 and plan.incomplete:
                _generate(plan, place, records, leases)
        if args.processes > 1 and plan.incomplete:
            part = f"{plan.part + 1}/{plan.parts}"
            status = processes.run(args, str(plan.description.folder), part, plan.files, plan.all_blocks)
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
    seconds = None if media == description.media else media.seconds
    if args.label is not None:
        description.class_number(args.label)  # refuses an unknown class before anything is written
    check_settings(description, settings)
    part, parts = processes.parse_part(args.part) if args.part else slurm.array_share()
    wanted = wanted_inputs(args, media if task.given else description.media, seconds if task.given else None)
    candidates = list_inputs(args.input, task.needs) if task.needs else []
    check_sets(candidates, wanted)
    prompts = find_prompts(args, description, settings)
    more = {
        "window": wanted.window if wanted.window != task.window else None,
        "seconds": seconds,
        "prompts": prompts or None,
        INPUT_SET: set_fingerprint(candidates),
    }
    record = folder_record(description, settings, candidates, args.label, more)
    record[SIGNAL_DECODER] = distilled_decoder(description, args.autoencoder)
    earlier = check_folder(args.output, args.task, record, description, settings)
    if args.num_samples is None:
        args.num_samples = count_samples(args, candidates, wanted, prompts)
    lossless = LosslessSet(args.output, args.task, media, settings.batch_size) if args.lossless else None
    made = [name for name in task.result if name in description.shapes]
    files = SampleFiles(args.output, args.task, suffix(made), media, wanted.media, lossless)
    return _Plan(
        args=args,
        settings=settings,
        description=description,
        candidates=candidates,
        wanted=wanted,
        seconds=seconds,
        contexts=_contexts(args, settings, description, prompts, earlier),
        record=record,
        begun_by=earlier.get(VERSION),
        files=files,
        part=part,
        parts=parts,
    )


def _contexts(
    args: argparse.Namespace,
    settings: Sampling,
    description: DiTDescription,
    prompts: Sequence[str],
    record: dict[str, Any],
) -> TextContexts | None:
    """Return the embeddings of ``prompts``; None if there are none.

    Args:
        record: that of the folder; one that has the encoder's path belongs to samples that were made with the
            fingerprint of all its files.
    """
    encoder = settings.text_encoder
    if not prompts or encoder is None:
        return None
    known = record["text_encoder"]
    fingerprint = pretrained.fingerprint(Path(encoder)) if isinstance(known, str) else known["fingerprint"]
    return TextContexts(args.output, encoder, fingerprint, description.model, prompts)


def _report_check(plan: _Plan) -> int:
    """Print what ``mmldm sample --check`` has found; return 0.

    Raises:
        UserError: the autoencoder or the vocoder is missing.
    """
    args, vocoder = plan.args, plan.settings.vocoder
    find_autoencoder(plan.description, args.autoencoder, plan.settings.decoding)
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


def _announce_cost(plan: _Plan) -> None:
    """Print what a sample costs by stage, if any is to be made."""
    if not plan.incomplete:
        return
    args = plan.args
    autoencoder = find_autoencoder(plan.description, args.autoencoder)
    context = "label" if args.label is not None else "context" if plan.contexts is not None else None
    cost = sample_cost(plan.description, autoencoder, plan.settings, args.task, context, plan.seconds)
    print(f"{args.task}: {cost}", file=sys.stderr, flush=True)


def _generate(plan: _Plan, place: processes.Place, records: SampleRecords, leases: Leases) -> None:
    """Generate the samples that are missing."""
    args, device = plan.args, place.device(plan.args.device)
    if plan.contexts is not None:
        plan.contexts.prepare(leases, device)
    pipeline = Pipeline.from_pretrained(plan.description.folder, plan.settings, args.autoencoder, device)
    # now that nothing can be refused
    write_folder_record(args.output, args.task, plan.record, plan.description, plan.settings, leases)
    if plan.files.lossless is not None:
        plan.files.lossless.begin(records.made_with, leases)
    blocks = plan.incomplete
    own = blocks[place.rank :: place.count]
    others = [block for block in blocks if block not in own]  # helped with if their processes are slower
    conditions = Conditions(args.label, plan.wanted, plan.contexts, plan.seconds)
    job = SamplingJob(pipeline, plan.files, records, leases, conditions, place, plan.settings.batch_size)
    job.generate([*own, *others], plan.all_blocks)
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


def _blocks(samples: int, size: int) -> list[range]:
    return [range(start, min(start + size, samples)) for start in range(0, samples, size)]
