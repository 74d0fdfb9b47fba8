"""The rows of Tables 1 and 4: trained DiTs are sampled without loss, and the samples measured.

What was made lies in the output folder: ``samples/RUN/`` as ``mmldm sample --lossless`` leaves it,
``measured/PROTOCOL/SET-ROW/`` as ``mmldm evaluate`` does, and ``reference/``, the features of the reference clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.diffusion.tasks import TASKS
from mmldm_scale.evaluation.clip_sets import open_clip_set
from mmldm_scale.evaluation.commands import run_here
from mmldm_scale.evaluation.extractors import extractor_class
from mmldm_scale.evaluation.measures import Measures, Report, measure
from mmldm_scale.evaluation.protocols.protocol import Protocol
from mmldm_scale.evaluation.tables.definition import SampledRow
from mmldm_scale.evaluation.tables.request import Measured, Place, Request, Row, words
from mmldm_scale.models.dit import DiT
from mmldm_scale.models.flops import dit_macs, parameters
from mmldm_scale.sampling import arguments as sampling
from mmldm_scale.sampling import job
from mmldm_scale.sampling.description import DiTDescription
from mmldm_scale.sampling.lossless import FOLDER
from mmldm_scale.shards.manifest import MANIFEST

SAMPLES, MEASURED, REFERENCE = "samples", "measured", "reference"  # subfolders of the output folder
ALL = ("--part", "1/1")  # tasks of an array job take what no other one is making, in place of a fixed share each
SIGNALS = {"video": "frames", "audio": "waveform"}  # that extractors read, by the modality


@dataclass(frozen=True)
class Cell:
    """A row of the table for one data set.

    Attributes:
        name: of the row.
        data: name of the data set.
        run: NAME of the setting runs.NAME.
        checkpoint: its run, checkpoint or weights folder.
    """

    name: str
    row: SampledRow
    data: str
    run: str
    checkpoint: Path
    description: DiTDescription

    @property
    def generated(self) -> set[str]:
        """The signals that the model makes and writes, without the given one."""
        return {SIGNALS[modality] for modality in TASKS[self.row.task].generated if modality in self.description.shapes}

    def metrics(self, measures: Measures) -> list[str]:
        """Return those metrics of ``measures`` whose networks read a generated signal, and none that is not there."""
        there = {SIGNALS[modality] for modality in TASKS[self.row.task].result if modality in self.description.shapes}
        metrics = measures.protocol.metrics
        return [
            key
            for key in measures.metrics
            if (reads := _reads(metrics[key].extractor)) <= there and reads & self.generated
        ]


def make(request: Request) -> Measured | None:
    """Sample and measure what is missing; None if other jobs are still making a part of it.

    Raises:
        UserError: as ``mmldm sample`` and ``mmldm evaluate`` do; no run is given.
        CommandFailed: a process of one of these failed.
    """
    cells, left_out = _cells(request)
    for cell in cells:
        _sample(request, cell)
    reports: dict[Place, Report] = {}
    missing = 0
    for measures in request.measures:
        for cell in cells:
            if cell.metrics(measures):
                content = _measure(request, cell, measures)
                missing += content is None
                if content is not None:
                    reports[measures.label, cell.name, cell.data] = content
    if missing:
        print(f"{request.output}: {missing} sets of samples are being made or measured by other jobs; run it again")
        return None
    return Measured(_rows(request, cells), reports, left_out)


def check(request: Request) -> None:
    """Check everything that can be checked before anything is sampled; print a line for each set of samples.

    Raises:
        UserError: something is missing or cannot be used.
    """
    cells, left_out = _cells(request)
    for cell in cells:
        _sample(request, cell, "--check")
    for line in left_out:
        print(line)


def _cells(request: Request) -> tuple[list[Cell], list[str]]:
    """Return the cells whose runs are given, checked, and in lines which are left out.

    Raises:
        UserError: no run is given, or a run or a set of clips cannot be used.
    """
    keys = {run: None for row in request.definition.rows.values() for run in row.runs.values()}
    unknown = [key for key in request.settings.runs if key not in keys]
    if unknown:
        raise UserError(f"runs.{unknown[0]}: no row has this model; must be one of {', '.join(keys)}")
    cells, left_out = _given_cells(request)
    if not cells:
        names = " ".join(f"runs.{key}=DIR" for key in keys)
        ask = f"runs: no row can be made; name the trained models: {names}"
        raise UserError("; ".join(left_out) if request.settings.runs else ask)
    for measures in request.measures:
        _check_references(request, measures.protocol, cells)
    return cells, left_out


def _check_references(request: Request, protocol: Protocol, cells: Sequence[Cell]) -> None:
    """Raise UserError if the clips that ``protocol`` asks for are missing, or are too few."""
    needed = request.args.num_samples or protocol.reference.count or protocol.samples.count
    for data in dict.fromkeys(cell.data for cell in cells):
        path = request.reference(data, protocol)
        available = len(open_clip_set(str(path)))
        if available < needed:
            raise UserError(f"{path}: has {available:,} clips; {needed:,} are needed as {protocol.reference.split}")


def _given_cells(request: Request) -> tuple[list[Cell], list[str]]:
    """Return the cells that can be made, and in lines, one for each reason, the others."""
    cells: list[Cell] = []
    left_out: dict[str, list[str]] = {}  # labels of rows by the reason
    for name, row in request.definition.rows.items():
        for data, run in row.runs.items():
            made = _cell(request, name, data, run)
            if isinstance(made, Cell):
                cells.append(made)
            else:
                left_out.setdefault(f"{request.definition.sets[data].title}: {made}", []).append(row.label)
    return cells, [f"{reason}: left out: {', '.join(labels)}" for reason, labels in left_out.items()]


def _cell(request: Request, name: str, data: str, run: str) -> Cell | str:
    """Return the cell of the row ``name``; the reason, if what it needs is not given.

    Raises:
        UserError: its run is not a DiT's, or cannot do the row's task.
    """
    row = request.definition.rows[name]
    if run not in request.settings.runs:
        return f"runs.{run} is not given"
    if TASKS[row.task].needs and data not in request.settings.inputs:
        return f"inputs.{data} is not given"
    checkpoint = Path(request.settings.runs[run])
    description = DiTDescription.read(checkpoint)
    description.check_task(row.task)
    cell = Cell(name, row, data, run, checkpoint, description)
    if not any(cell.metrics(measures) for measures in request.measures):
        return "no network with weights reads what is generated"
    return cell


def _reads(extractor: str) -> set[str]:
    reads = extractor_class(extractor).reads
    return {reads} if reads in SIGNALS.values() else set(SIGNALS.values())


def _sample(request: Request, cell: Cell, *more: str) -> None:
    """Make the samples of ``cell`` that are missing."""
    args, settings = request.args, request.settings
    options: list[object] = ["--checkpoint", cell.checkpoint, "--task", cell.row.task, "--num-samples", request.count]
    options += ["--output", request.output / SAMPLES / cell.run, "--lossless", "--device", args.device, *ALL]
    options += ["--processes", args.processes]
    if TASKS[cell.row.task].needs:
        options += ["--input", settings.inputs[cell.data]]
    preset = request.definition.sets[cell.data].preset
    options += ["--preset", preset] if preset else []
    run_here(sampling.add_arguments, job.run, [*options, *more, *words(settings.sample)])


def _measure(request: Request, cell: Cell, measures: Measures) -> Report | None:
    """Measure the samples of ``cell`` as far as that is not done; return the report, None if others are at it."""
    args = request.args
    samples = request.output / SAMPLES / cell.run / FOLDER / cell.row.task
    if not (samples / MANIFEST).exists():
        return None
    output = request.output / MEASURED / measures.label / f"{cell.data}-{cell.name}"
    options = ["--samples", samples, "--reference", request.reference(cell.data, measures.protocol)]
    options += ["--device", args.device, "--processes", args.processes, *ALL]
    options += ["--num-samples", args.num_samples] if args.num_samples else []
    options += [f"reference_features={request.output / REFERENCE}"]
    options += words({"weights": request.settings.weights})
    return measure(measures, cell.metrics(measures), output, options)


def _rows(request: Request, cells: list[Cell]) -> list[Row]:
    rows = []
    for name, row in request.definition.rows.items():
        first = next((cell for cell in cells if cell.name == name), None)
        if first is not None:
            sizes = _sizes(first.description) if request.definition.sizes else ("", "")
            rows.append(Row(name, row.label, *sizes))
    return rows


def _sizes(description: DiTDescription) -> tuple[str, str]:
    """Return the number of parameters of the DiT that ``description`` is of, and the MACs of its linear layers."""
    shapes = description.audio_shape, description.video_shape
    with torch.device("meta"):
        count = parameters(DiT(description.model, *shapes, len(description.classes)))
    return f"{count / 1e6:.1f} M", f"{dit_macs(description.model, *shapes).linear / 1e9:.1f} G"
