"""The page ``index.html`` beside samples, to look at them and to listen to them; and one over several folders.

``write(folder, media)`` makes the page of a folder from the files that exist and the JSON beside them, and from nothing
else. So every job may write it at its end, and folders with the same samples have the same page. ``mmldm gallery``
(:func:`run`) makes a page on which the samples of several folders are side by side, by their names.

A page holds the list of the samples as JSON. Its script (gallery.js) makes players and pictures of those in view alone.
All text from files reaches the page as text, never as HTML.
"""

import argparse
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.pages import render
from mmldm_scale.config import MediaConfig
from mmldm_scale.diffusion.tasks import TASKS
from mmldm_scale.sampling.sample_files import INPUTS, SAMPLE
from mmldm_scale.sampling.spectrograms import FOLDER, Spectrograms

PAGE = "index.html"
MOST = 4096  # samples of a task on the page
LONGEST = 500  # characters of a text on the page


def run(args: argparse.Namespace) -> int:
    """Write the page that the arguments of ``mmldm gallery`` ask for; return 0.

    Raises:
        UserError: a folder has no samples, the page has another ending than .html, or the disk is full.
    """
    output: Path = args.output
    if output.suffix != ".html":
        raise UserError(f"--output {output}: must be a file that ends in .html")
    page = _Page(output.parent, [(str(folder), folder) for folder in args.folders])
    for folder, count in zip(args.folders, page.counts, strict=True):
        if not count:
            raise UserError(f"{folder}: contains no samples, such as svg_000000.mp4")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, page.html(" · ".join(str(folder) for folder in args.folders)).encode())
    print(f"{output} shows {len(page.samples)} samples of {len(args.folders)} folders")
    return 0


def write(folder: Path, media: MediaConfig) -> Path:
    """Write ``folder/index.html`` over the samples in ``folder``, whole or not at all; return its path.

    Spectrograms that are missing are made, too; ``media`` is the samples' format.

    Of several jobs that end together, the last one to write may have listed the folder before the others had finished;
    so it is listed again after the writing, once: a job that ends later writes the page anew.

    Raises:
        UserError: the disk is full.
    """
    spectrograms = Spectrograms(folder, media)
    page, html = folder / PAGE, _Page(folder, [("", folder)], spectrograms).html("Samples")
    write_whole(page, html.encode())
    again = _Page(folder, [("", folder)], spectrograms).html("Samples")
    if again != html:
        write_whole(page, again.encode())
    return page


class _Page:
    """The list of the samples of some folders.

    Args:
        place: the folder that the page lies in.
        runs: each folder with its label.
        spectrograms: makes the missing ones, of a single folder.

    Attributes:
        counts: number of samples of each folder.
        samples: what the page shows of each: its name; its class and prompt, if any; "results", for each folder
            [ending, 1 if it has a spectrogram, number of its text] or None; "input": likewise, and the number of the
            folder that has it.
    """

    def __init__(self, place: Path, runs: Sequence[tuple[str, Path]], spectrograms: Spectrograms | None = None) -> None:
        self._place, self._runs, self._spectrograms = place, runs, spectrograms
        self._texts: dict[str, int] = {}  # many samples have the same: each once, with its number
        found = [_samples(folder) for _, folder in runs]
        self.counts = [len(files) for files in found]
        tasks: dict[str, list[str]] = {}
        for name in sorted(set(itertools.chain(*found))):
            tasks.setdefault(_task(name), []).append(name)
        order = sorted(tasks, key=lambda task: [*TASKS].index(task))
        self._left_out = sum(max(0, len(names) - MOST) for names in tasks.values())
        self._tasks = [[task, TASKS[task].title, len(tasks[task])] for task in order]
        names = [name for task in order for name in tasks[task][:MOST]]
        self.samples = [self._sample(name, [files.get(name) for files in found]) for name in names]

    def html(self, title: str) -> str:
        """Return the page."""
        bases = [quote(Path(os.path.relpath(folder, self._place)).as_posix()) + "/" for _, folder in self._runs]
        data = {
            "runs": [[label, base.removeprefix("./")] for (label, _), base in zip(self._runs, bases, strict=True)],
            "tasks": self._tasks,
            "left_out": self._left_out,
            "texts": list(self._texts),
            "samples": self.samples,
        }
        return render(Path(__file__).with_name("gallery.html"), title=title, data=data)

    def _sample(self, name: str, files: Sequence[Path | None]) -> dict[str, Any]:
        records = [_read(file.with_suffix(".json")) if file else {} for file in files]
        shown: dict[str, Any] = {"name": name, "results": []}
        for number, (file, record) in enumerate(zip(files, records, strict=True)):
            shown["results"].append(None if file is None else self._medium(number, file, _settings(record)))
            for key in ("class", "prompt"):
                if record.get(key) is not None:
                    shown.setdefault(key, str(record[key])[:LONGEST])
            given = _input(file) if file and "input" not in shown else None
            if given:
                source = record.get("input")
                path = str(source.get("path", "")) if isinstance(source, dict) else ""
                shown["input"] = [*self._medium(number, given, path), number]
        return shown

    def _medium(self, number: int, file: Path, text: str) -> list[Any]:
        if self._spectrograms is not None:
            self._spectrograms.complete(file)
        folder = self._runs[number][1]
        picture = folder / FOLDER / file.relative_to(folder).with_suffix(".png")
        return [file.suffix[1:], int(picture.exists()), self._texts.setdefault(text[:LONGEST], len(self._texts))]


def _samples(folder: Path) -> dict[str, Path]:
    """Return the files of the samples in ``folder`` by their names; raise UserError if it is no folder."""
    try:
        return {file.stem: file for file in sorted(folder.iterdir()) if SAMPLE.fullmatch(file.name)}
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: no such folder") from None


def _task(name: str) -> str:
    return name.rpartition("_")[0]


def _input(file: Path) -> Path | None:
    """Return the clip that the sample in ``file`` was made from, if it is beside it."""
    inputs = [file.parent / INPUTS / f"{file.stem}{suffix}" for suffix in (".mp4", ".wav")]
    return next((path for path in inputs if path.exists()), None)


def _read(file: Path) -> dict[str, Any]:
    """Return the JSON beside a sample; {} if there is none that can be read, as beside samples of older versions."""
    try:
        record = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _settings(record: dict[str, Any]) -> str:
    """Return what ``record`` says of how its sample was made, as a line."""
    if not record:
        return "no JSON beside it tells the settings"
    guidance = record.get("guidance")
    scales = ", ".join(f"{name} {scale}" for name, scale in guidance.items()) if isinstance(guidance, dict) else "?"
    seed, steps, sampler, precision = (record.get(key, "?") for key in ("seed", "steps", "sampler", "precision"))
    decoding = record.get("decoding")
    decoded = f", decoded in {decoding.get('steps', '?')}" if isinstance(decoding, dict) else ""
    return f"seed {seed}, {steps} steps of {sampler}{decoded}, guidance: {scales}, {precision}"
