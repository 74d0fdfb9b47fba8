"""What samples were made from, as JSON: ``svg.json`` for all of a folder's task, ``svg_000007.json`` for one of them.

The record of a folder holds everything that its samples depend on; jobs with another record are refused. The record of
a sample has what a reader of that one wants to know. It is the same, byte for byte, whatever job and machine made it.
"""

import contextlib
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmldm_scale import __version__
from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.config import Sampling
from mmldm_scale.diffusion.noise_process import noise_process
from mmldm_scale.diffusion.samplers import get_sampler
from mmldm_scale.diffusion.tasks import GenerationTask
from mmldm_scale.models import pretrained
from mmldm_scale.sampling.description import DiTDescription
from mmldm_scale.sampling.inputs import Input
from mmldm_scale.sampling.prompts import TextContexts, encoder_fingerprint
from mmldm_scale.sampling.sample_files import INPUTS, SampleFiles

VERSION = "version"  # key of the program's version, in both kinds of record
INPUT_SET = "input_set"  # key of the fingerprint of a shard set that the samples start from
NETWORKS = ("text_encoder", "vocoder")  # settings that name weights, of which a record holds the fingerprints
SIGNAL_DECODER = "signal_decoder"  # key of the fingerprint of an autoencoder with a distilled decoder


# --- of a folder's task ----------------------------------------------------------------------------------------------


def folder_record(
    description: DiTDescription,
    settings: Sampling,
    inputs: Iterable[Path],
    label: str | None,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Return everything that samples depend on: two jobs may fill one folder only if it is the same for both.

    Args:
        more: what else the samples depend on; values that are None are left out.
    """
    return {
        "checkpoint": pretrained.fingerprint(description.folder),
        **_decisive(settings),
        **_networks(settings, bool(more.get("prompts"))),
        "inputs": [str(path.resolve()) for path in inputs],
        "label": label,
        **{key: value for key, value in more.items() if value is not None},
        VERSION: __version__,
    }


def _decisive(settings: Sampling) -> dict[str, Any]:
    """Return the ``settings`` that samples depend on by more than rounding."""
    decisive = dataclasses.asdict(settings)
    del decisive["attention"], decisive["clips_together"], decisive["decoding"]["pictures"]
    return decisive


def _networks(settings: Sampling, has_prompts: bool) -> dict[str, dict[str, str] | None]:
    """Return the fingerprints of the networks that ``settings`` name by their paths, as far as samples depend on them.

    Raises:
        UserError: there is no vocoder at its path.
    """
    encoder, vocoder = settings.text_encoder if has_prompts else None, settings.vocoder
    if vocoder and not Path(vocoder).exists():
        raise UserError(f"vocoder={vocoder}: no such file or folder")
    return {
        "text_encoder": {"fingerprint": encoder_fingerprint(encoder)} if encoder else None,
        "vocoder": {"fingerprint": pretrained.fingerprint(Path(vocoder))} if vocoder else None,
    }


def check_folder(
    output: Path, task: GenerationTask, record: dict[str, Any], description: DiTDescription, settings: Sampling
) -> dict[str, Any]:
    """Check that ``output`` is a folder, and that its samples of ``task``, if any, were generated with this record.

    The version of the program may differ.

    Args:
        record: as :func:`folder_record` made it of ``description`` and ``settings``.

    Returns: the record in the folder; ``record`` itself if it has none yet.

    Raises:
        UserError: it contains samples of another checkpoint, settings or inputs; it cannot be written.
    """
    file = output / f"{task}.json"
    try:
        with _output_errors(output):
            output.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                return record
            earlier: dict[str, Any] = _decisive(Sampling()) | json.loads(file.read_text())  # settings added since
        expected = record | _as_recorded_before(earlier, record, description, settings)
    except (TypeError, ValueError):
        raise UserError(f"{file}: not the record of a sampling job; give another --output") from None
    changed = [key for key in {**record, **earlier} if key != VERSION and earlier.get(key) != expected.get(key)]
    if changed:
        keys = ", ".join(changed)
        raise UserError(f"{output}: contains {task} samples made with another {keys}; give another --output")
    return earlier


def _as_recorded_before(
    earlier: dict[str, Any], record: dict[str, Any], description: DiTDescription, settings: Sampling
) -> dict[str, Any]:
    """Return those values of ``record`` that ``earlier`` has in the form of an older version, in that form."""
    before: dict[str, Any] = {key: getattr(settings, key) for key in NETWORKS if isinstance(earlier.get(key), str)}
    if INPUT_SET not in earlier:
        before[INPUT_SET] = None
    rate = description.media.fps
    if "seconds" in earlier and round(earlier["seconds"] * rate) / rate == record.get("seconds"):
        before["seconds"] = earlier["seconds"]  # as they were asked for, not those of whole frames
    return before


def write_folder_record(
    output: Path,
    task: GenerationTask,
    record: dict[str, Any],
    description: DiTDescription,
    settings: Sampling,
    leases: Leases,
) -> None:
    """Write the record of ``task`` to ``output``, or check the one that another job has written meanwhile.

    Args:
        record: as :func:`folder_record` made it of ``description`` and ``settings``.
        leases: on ``output``.

    Raises:
        UserError: as :func:`check_folder`.
    """
    file = output / f"{task}.json"
    with _output_errors(output):
        if record["inputs"]:
            (output / INPUTS).mkdir(exist_ok=True)
        with leases.writing(file):
            if not file.exists():
                write_whole(file, _json(record))
    check_folder(output, task, record, description, settings)


@contextlib.contextmanager
def _output_errors(output: Path) -> Iterator[None]:
    """Turn the file system's refusals in the block into a UserError that names ``output``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{output}: cannot be used as output folder: {error.strerror}") from None


# --- of one sample ---------------------------------------------------------------------------------------------------


class SampleRecords:
    """The records of a job's samples.

    Args:
        files: of the samples.
        settings: of the job.
        record: of the folder, as :func:`folder_record` made it.
        begun_by: version of the program that began the folder; None if it recorded none.
        inputs: of the samples: sample i starts from input i modulo their number; empty: none.
        input_folder: the folder that the inputs' paths are relative to.
        input_seconds: length of an input's window.
        contexts: the samples' prompts; None: they have none.
    """

    def __init__(
        self,
        files: SampleFiles,
        description: DiTDescription,
        settings: Sampling,
        record: dict[str, Any],
        begun_by: str | None,
        inputs: Sequence[Input] = (),
        input_folder: Path | None = None,
        input_seconds: float = 0.0,
        contexts: TextContexts | None = None,
    ) -> None:
        self._input_seconds, self._contexts = input_seconds, contexts
        self._files, self._inputs = files, inputs
        self._input_folder = os.path.abspath(input_folder or ".")
        self._description, self._settings, self._record = description, settings, record
        self._begun_by = begun_by

    @functools.cached_property
    def _common(self) -> dict[str, Any]:
        """What all records have in common."""
        settings, description = self._settings, self._description
        sampler = get_sampler(settings.sampler, noise_process(description.diffusion), settings.steps)
        decoding = dataclasses.asdict(settings.decoding)
        del decoding["pictures"]  # decoded together: changes nothing but rounding
        return {
            "seed": settings.seed,
            "guidance": _guidance(settings, description.shapes),
            "sampler": sampler.name,
            "steps": settings.steps,
            "decoding": decoding,
            "vocoder": self._record["vocoder"] or "griffin-lim",
            "precision": settings.precision,
            "class": self._record["label"],
            "prompt": None,
            "checkpoint": {"fingerprint": self._record["checkpoint"]},
            "autoencoder": {"fingerprint": description.autoencoder["fingerprint"]},
            **({SIGNAL_DECODER: self._record[SIGNAL_DECODER]} if self._record.get(SIGNAL_DECODER) else {}),
            **self._length(),
            **({"text_encoder": {"fingerprint": self._contexts.fingerprint}} if self._contexts else {}),
        }

    def _length(self) -> dict[str, float]:
        """Return the length of a long sample and of its windows in seconds; {} for samples of one clip."""
        if "seconds" not in self._record:
            return {}
        return {"seconds": self._record["seconds"], "window_seconds": self._description.media.seconds}

    @property
    def made_with(self) -> dict[str, Any]:
        """What all samples are made with, of one task."""
        return {"task": self._files.task, **self._common}

    def content(self, index: int) -> dict[str, Any]:
        """Return the record of sample ``index``, which is made now."""
        return self._content(index, __version__)

    def source(self, index: int) -> Input | None:
        """Return what sample ``index`` starts from."""
        return self._inputs[index % len(self._inputs)] if self._inputs else None

    def write(self, index: int) -> None:
        """Write the record of sample ``index``, which is made now; raise UserError if the disk is full."""
        write_whole(self._files.record(index), _json(self.content(index)))

    def problem(self, index: int, content: bytes, more: Collection[str] = ()) -> str:
        """Return what is wrong with the JSON ``content`` of sample ``index``; empty if nothing is.

        The version of the program may differ.

        Args:
            more: keys that it must have besides those of the record.
        """
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            return "damaged"
        expected = self._content(index, None)
        if not isinstance(found, dict) or found.keys() != {*expected, *more}:
            return "damaged"
        differing = [key for key in expected if key != VERSION and found[key] != expected[key]]
        return f"another {', '.join(differing)} than this folder's" if differing else ""

    def complete(self, blocks: Sequence[range], verify: bool, leases: Leases) -> None:
        """Write the records that are missing beside samples of ``blocks``, and with ``verify`` those that are wrong.

        They tell the program's version only if it is the one that began the folder.
        """
        version = __version__ if self._begun_by == __version__ else None
        missing = 0
        for index in (index for block in blocks for index in block if self._files.file(index).exists()):
            file = self._files.record(index)
            problem = self.problem(index, file.read_bytes()) if verify and file.exists() else ""
            if problem:
                print(f"{file}: {problem}, is written again", file=sys.stderr, flush=True)
            if problem or not file.exists():
                missing += not problem
                with leases.writing(file):
                    write_whole(file, _json(self._content(index, version)))
        if missing:
            print(
                f"{self._files.folder}: {missing} {self._files.task} samples had no JSON beside them (older versions "
                "wrote none, or it was removed); it is written, the samples stay as they are",
                file=sys.stderr,
                flush=True,
            )

    def _content(self, index: int, version: str | None) -> dict[str, Any]:
        return {
            "name": self._files.name(index),
            "task": self._files.task,
            "index": index,
            **self._common,
            **({"prompt": self._contexts.prompt(index)} if self._contexts else {}),
            "input": self._input(index),
            VERSION: version,
        }

    def _input(self, index: int) -> dict[str, Any] | None:
        """Return what sample ``index`` starts from; ``set`` and ``key`` are those of a sample of a shard set."""
        source = self.source(index)
        if source is None:
            return None
        path = Path(os.path.relpath(os.path.abspath(source.path), self._input_folder)).as_posix()
        set_name, key = (Path(source.path).name, source.key) if source.key else (None, None)
        return {
            "name": key or Path(path).name,
            "set": set_name,
            "key": key,
            "path": f"{set_name}/{key}" if key else path,
            "window": [source.start, round(source.start + self._input_seconds, 6)],
            "sha256": source.sha256,
        }


def _guidance(settings: Sampling, modalities: Iterable[str]) -> dict[str, Any]:
    """Return scales by modality, and those of the other settings of guidance that differ from their defaults.

    So the records of older versions, which had no others, are those of samples that are made today.
    """
    guidance: dict[str, Any] = {name: getattr(settings, f"{name}_guidance") for name in modalities}
    others = {"class": "class_guidance", "interval": "guidance_interval"}
    default = Sampling()
    changed = {name: key for name, key in others.items() if getattr(settings, key) != getattr(default, key)}
    return guidance | {name: getattr(settings, key) for name, key in changed.items()}


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"
