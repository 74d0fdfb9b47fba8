"""The page ``index.html`` beside sampled mp4 or wav files, to look at them and to listen to them.

``write(folder)`` makes it from the names of the files that exist, and from nothing else. So every job may write it at
its end, and folders with the same samples have the same page.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.pages import render

SAMPLE = re.compile(r"(svg|a2v|v2a)_(\d{6,})\.(mp4|wav)")
TITLES = {"svg": "Generated without input", "a2v": "Picture to given sound", "v2a": "Sound to given picture"}
MOST = 200  # samples of a task on the page: browsers become slow with thousands of videos


@dataclass(frozen=True)
class _Sample:
    """One sample: its name, and the paths of its file and of its input ("": none), relative to the page."""

    name: str
    file: str
    input: str


@dataclass(frozen=True)
class _Section:
    """The samples of one task; ``count`` is how many there are, ``samples`` those that are shown."""

    task: str
    title: str
    count: int
    samples: list[_Sample]


def write(folder: Path) -> Path:
    """Write ``folder/index.html`` over the samples in ``folder``, whole or not at all; return its path.

    Of several jobs that end together, the last one to write may have listed the folder before the others had finished;
    so it is listed again after the writing.
    """
    page, html = folder / "index.html", _page(folder)
    while True:
        write_whole(page, html.encode())
        written, html = html, _page(folder)
        if html == written:
            return page


def _page(folder: Path) -> str:
    tasks: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        match = SAMPLE.fullmatch(file.name)
        if match:
            tasks.setdefault(match[1], []).append(file)
    sections = [
        _Section(task, title, len(tasks[task]), [_sample(folder, file) for file in tasks[task][:MOST]])
        for task, title in TITLES.items()
        if task in tasks
    ]
    return render(Path(__file__).with_name("gallery.html"), title="Samples", sections=sections)


def _sample(folder: Path, file: Path) -> _Sample:
    has_input = (folder / "inputs" / file.name).exists()
    return _Sample(file.stem, file.name, f"inputs/{file.name}" if has_input else "")
