"""A place where the sharding command runs as a real process, to be killed or run out of room."""

import os
import secrets
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.support.datasets.recordings import record
from tests.support.tiny_models import tiny_autoencoder

ROOT = Path(__file__).parents[2]
KINDS = ("clips", "latents", "measure")
_SMALL = (
    f"media.frames={tiny_autoencoder.MEDIA.frames}",
    f"media.fps={tiny_autoencoder.MEDIA.fps:g}",
    f"media.size={tiny_autoencoder.MEDIA.size}",
    f"media.audio.sample_rate={tiny_autoencoder.AUDIO.sample_rate}",
    f"media.audio.n_fft={tiny_autoencoder.AUDIO.n_fft}",
    f"media.audio.win_length={tiny_autoencoder.AUDIO.win_length}",
    f"media.audio.hop_length={tiny_autoencoder.AUDIO.hop_length}",
    f"media.audio.n_mels={tiny_autoencoder.AUDIO.n_mels}",
    f"media.audio.f_max={tiny_autoencoder.AUDIO.f_max:g}",
    "stride=2",
    "samples_per_shard=2",
)
_MARK = "MMLDM_TRIAL"  # in the environment of every process of a workshop
_END_SECONDS = 20.0  # that the processes of a killed one may take to notice


@dataclass(frozen=True)
class Workshop:
    """Videos, one of them silent; beside them whatever is made of them.

    All outputs lie equally deep, ``folder/NAME/KIND``, since a set of latents tells the way to its clips.
    """

    folder: Path
    mark: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        (self.folder / "videos").mkdir()
        for number in range(5):
            span = (0, 1.6) if number else None
            record(self.folder / "videos" / f"{number}.mp4", pictures=np.arange(16 - number) / 10, sound=span)

    def expected(self, kind: str) -> dict[str, bytes]:
        """Return the files that an undisturbed run makes, by their names."""
        output = self.folder / "undisturbed" / kind
        if not output.exists():
            if kind == "latents":
                self.expected("clips")
                shutil.copytree(output.parent / "clips", self.folder / "clips")
                tiny_autoencoder.opened(tiny_autoencoder.build()).save_pretrained(self.folder / "autoencoder")
            done = self.start(kind, output)
            answer = done.communicate(timeout=120)
            assert done.returncode == 0, answer
        return contents(output)

    def start(self, kind: str, output: Path, workers: int = 0) -> subprocess.Popen[str]:
        """Start the command that makes ``output``, in a session of its own; its two streams are pipes."""
        source = self.folder / ("clips" if kind == "latents" else "videos")
        options = {
            "clips": _SMALL,
            "latents": ["--autoencoder", self.folder / "autoencoder", "--batch-size", 2, "--device", "cpu"],
            "measure": ["rows_per_part=1"],
        }
        command = [kind, "--input", source, "--output", output, "--workers", workers, *options[kind]]
        return subprocess.Popen(
            [sys.executable, "data_tools/shard.py", *map(str, command)],
            cwd=ROOT,
            env={**os.environ, _MARK: self.mark, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def check_deserted(self) -> None:
        """Raise AssertionError if a process that was started here, or by one of them, does not end."""
        deadline = time.monotonic() + _END_SECONDS
        while (left := self._processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, f"still there: {left}"

    def _processes(self) -> list[str]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"{_MARK}={self.mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                    found.append(f"{process.name} {(process / 'cmdline').read_bytes()!r:.200}")
            except OSError:
                continue  # it ended just now, or is another user's
        return found


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below ``folder`` by its path in it; empty folders end in "/"."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    empty = {f"{path.relative_to(folder).as_posix()}/": b"" for path in folder.rglob("*/") if not any(path.iterdir())}
    return files | empty
