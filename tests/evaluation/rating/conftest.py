"""Two small sets of clips, and a study of them that a process of its own serves."""

import re
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest

from mmldm_scale.common.processes import own_command
from mmldm_scale.media.encode import write_video

CLIPS = 6
SETS = {"first set": "svg_{:06d}.mp4", "second-set": "{:04d}.mp4"}  # by name: the files', which end in equal numbers


def write_clip(file: Path, number: int) -> None:
    """Write a video of 0.4 s, a bar at a place of its own for each ``number``, with a tone."""
    frames = np.full((4, 32, 32, 3), 60, np.uint8)
    frames[:, :, 4 * number : 4 * number + 4] = (255, 120, 0)
    tone = 0.1 * np.sin(2 * np.pi * (300 + 100 * number) * np.arange(3200) / 8000)
    write_video(file, frames, 10, tone.astype(np.float32), 8000)


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of corresponding clips, by the name of the set."""
    folders = {}
    for name, pattern in SETS.items():
        folders[name] = tmp_path_factory.mktemp(name.replace(" ", "_"))
        for number in range(CLIPS):
            write_clip(folders[name] / pattern.format(number), number)
    return folders


def options(sets: Mapping[str, Path]) -> list[str]:
    """Return ``--set`` for each of ``sets``."""
    return [word for name, folder in sets.items() for word in ("--set", f"{name}={folder}")]


@contextmanager
def served(*arguments: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run ``mmldm rate serve`` on any free port: the raters' link, and the process, which is killed at the end."""
    command = [*own_command(), "rate", "serve", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        printed = []
        for line in process.stdout:
            printed.append(line)
            if link := re.search(r"http://\S+/", line):
                yield link[0], process
                break
        else:
            pytest.fail("".join(printed))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


Serve = Callable[..., AbstractContextManager[tuple[str, "subprocess.Popen[str]"]]]


def post(url: str, **fields: object) -> str:
    """Send a form as a browser does; return the address of the page that follows."""
    with urllib.request.urlopen(url, urllib.parse.urlencode(fields).encode(), timeout=60) as answer:
        answer.read()
        return answer.url
