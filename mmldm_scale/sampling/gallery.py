"""The page ``index.html`` beside sampled mp4 or wav files, to look at them and to listen to them.

``write(folder, media)`` makes it from the files that exist and the JSON beside them, and from nothing else. So every
job may write it at its end, and folders with the same samples have the same page.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.pages import render
from mmldm_scale.config import MediaConfig
from mmldm_scale.diffusion.tasks import TASKS
from mmldm_scale.sampling.sample_files import INPUTS, SAMPLE
from mmldm_scale.sampling.spectrograms import Spectrograms

PAGE = "index.html"
MOST = 4096  # samples of a task on the page


@dataclass(frozen=True)
class _Medium:
    """A video or sound on the page: the paths of it and of its spectrogram ("": none), relative to the page."""

    file: str
    spectrogram: str
    caption: str


@dataclass(frozen=True)
class _Sample:
    """One sample: its name, what is shown of it, the condition first, and its settings as lines of text."""

    name: str
    media: list[_Medium]
    facts: list[str]


@dataclass(frozen=True)
class _Section:
    """The samples of one task; ``count`` is how many there are, ``samples`` those that are shown."""

    task: str
    title: str
    count: int
    samples: list[_Sample]


def write(folder: Path, media: MediaConfig) -> Path:
    """Write ``folder/index.html`` over the samples in ``folder``, whole or not at all; return its path.

    Spectrograms that are missing are made, too; ``media`` is the samples' format.

    Of several jobs that end together, the last one to write may have listed the folder before the others had finished;
    so it is listed again after the writing.

    Raises:
        UserError: the disk is full.
    """
    spectrograms = Spectrograms(folder, media)
    page, html = folder / PAGE, _page(folder, spectrograms)
    while True:
        write_whole(page, html.encode())
        written, html = html, _page(folder, spectrograms)
        if html == written:
            return page


def _page(folder: Path, spectrograms: Spectrograms) -> str:
    tasks: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        match = SAMPLE.fullmatch(file.name)
        if match:
            tasks.setdefault(match[1], []).append(file)
    sections = [
        _Section(name, task.title, len(files), [_sample(folder, file, spectrograms) for file in files[:MOST]])
        for name, task in TASKS.items()
        if (files := tasks.get(name))
    ]
    return render(Path(__file__).with_name("gallery.html"), title="Samples", sections=sections)


def _sample(folder: Path, file: Path, spectrograms: Spectrograms) -> _Sample:
    record = _read(file.with_suffix(".json"))
    inputs = [folder / INPUTS / f"{file.stem}{suffix}" for suffix in (".mp4", ".wav")]
    given = next((path for path in inputs if path.exists()), None)
    media = [_medium(folder, file, "result" if given else "", spectrograms)]
    if given:
        source = record.get("input")
        name = str(source.get("path", "")) if isinstance(source, dict) else ""
        media.insert(0, _medium(folder, given, f"input {name}".rstrip(), spectrograms))
    return _Sample(file.stem, media, _facts(record))


def _medium(folder: Path, file: Path, caption: str, spectrograms: Spectrograms) -> _Medium:
    picture = spectrograms.picture(file)
    spectrograms.complete(file)
    shown = picture.relative_to(folder).as_posix() if picture.exists() else ""
    return _Medium(file.relative_to(folder).as_posix(), shown, caption)


def _read(file: Path) -> dict[str, Any]:
    """Return the JSON beside a sample; {} if there is none that can be read, as beside samples of older versions."""
    try:
        record = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _facts(record: dict[str, Any]) -> list[str]:
    """Return what ``record`` says of its sample, as lines."""
    if not record:
        return ["no JSON beside it tells the settings"]
    guidance = record.get("guidance")
    scales = ", ".join(f"{name} {scale}" for name, scale in guidance.items()) if isinstance(guidance, dict) else "?"
    labels = [f"{key} {record[key]}" for key in ("class", "prompt") if record.get(key) is not None]
    steps, sampler, precision = (record.get(key, "?") for key in ("steps", "sampler", "precision"))
    return [
        ", ".join([*labels, f"seed {record.get('seed', '?')}"]),
        f"{steps} steps of {sampler}, guidance: {scales}, {precision}",
    ]
