"""Damaged media: small real files with bits flipped, parts cut out, swapped between files, or numbers made extreme.

    python -m tests.support.faults.fuzz_media --count 10000 --seed 0

reads that many in worker processes and prints what became of them; a file that hung or killed its process is kept in
--keep, so that it can be looked at.
"""

import argparse
import functools
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.launching import process_pool
from data_tools.launching.process_pool import default_workers
from data_tools.launching.progress import Progress
from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.decode import probe, read_clips
from tests.support.datasets.recordings import record

MEDIA = MediaConfig(frames=4, fps=10.0, size=16, audio=AudioImageConfig(sample_rate=8000, f_max=4000.0))
LIMIT = 30.0  # seconds: no file may take longer
STARTS = (0.0, 0.4, 0.8, 12.0)  # of the windows read: the last one needs a seek, where a file leases to be so long
HEVC = {"video_codec": "libx265", "codec_options": {"x265-params": "log-level=none"}, "size": (64, 64)}  # it needs 64
ORIGINALS = {
    "a.mp4": {},
    "b.mp4": {"options": {"movflags": "faststart"}, **HEVC},
    "c.mp4": {"options": {"movflags": "frag_keyframe+empty_moov"}},
    "d.mkv": {"video_codec": "ffv1", "audio_codec": "flac"},
    "e.webm": {"video_codec": "libvpx-vp9", "audio_codec": "libopus", "rate": 48000},
    "f.avi": {"video_codec": "mpeg4", "audio_codec": "libmp3lame"},
    "g.ts": {"audio_codec": "mp2"},
    "h.mov": {"video_codec": "mjpeg", "pixels": "yuvj420p", "audio_codec": "pcm_s16le"},
    "i.flv": {},
}


@dataclass(frozen=True)
class Outcome:
    """What became of a damaged file, and how long that took."""

    number: int
    kind: str  # "clips", or the reason why there are none
    seconds: float


def originals(folder: Path) -> list[bytes]:
    """Return the files that get damaged, made in ``folder``."""
    times = np.arange(16) / 10
    return [
        record(folder / name, **{"pictures": times, "sound": (0, 1.6), "size": (32, 48), **recipe}).read_bytes()
        for name, recipe in ORIGINALS.items()
    ]


def damaged(files: list[bytes], number: int, seed: int) -> bytes:
    """Return damaged file ``number``: a pure function of its arguments."""
    rng = np.random.default_rng([seed, number])
    data = bytearray(files[number % len(files)])
    for _ in range(rng.integers(1, 4)):
        _DAMAGES[rng.integers(len(_DAMAGES))](data, rng, files)
    return bytes(data)


def _flip(data: bytearray, rng: np.random.Generator, files: list[bytes]) -> None:
    for position in rng.integers(0, len(data), 2 ** rng.integers(0, 9)):
        data[position] ^= 1 << rng.integers(8)


def _flip_head(data: bytearray, rng: np.random.Generator, files: list[bytes]) -> None:
    """Headers steer everything and are a small part of a file, so they get a share of their own."""
    for position in rng.integers(0, min(len(data), 800), 2 ** rng.integers(0, 5)):
        data[position] ^= 1 << rng.integers(8)


def _truncate(data: bytearray, rng: np.random.Generator, files: list[bytes]) -> None:
    del data[rng.integers(1, len(data) + 1) :]


def _remove(data: bytearray, rng: np.random.Generator, files: list[bytes]) -> None:
    first = rng.integers(0, len(data))
    del data[first : first + rng.integers(1, 600)]
    data += b"\0"  # never empty


def _repeat(data: bytearray, rng: np.random.Generator, files: list[bytes]) -> None:
    first = rng.integers(0, len(data))
    data[first:first] = data[first : first + 600] * int(rng.integers(1, 20))


def _splice(data: bytearray, rng: np.random.Generator, files: list[bytes]) -> None:
    other = files[rng.integers(len(files))]
    data[rng.integers(1, len(data) + 1) :] = other[rng.integers(0, len(other)) :]


def _extreme(data: bytearray, rng: np.random.Generator, files: list[bytes]) -> None:
    """Put a number that overflows something where a number may be."""
    values = [bytes.fromhex(text) for text in ("00000000", "ffffffff", "7fffffff", "ffffff7f", "80000000", "0000ffff")]
    for position in rng.integers(0, len(data), rng.integers(1, 8)):
        data[position : position + 4] = values[rng.integers(len(values))]


_DAMAGES = (_flip, _flip_head, _truncate, _remove, _repeat, _splice, _extreme)


def read(files: list[bytes], seed: int, folder: Path, number: int) -> Outcome:
    """Write damaged file ``number`` into ``folder``, read it as preparation does, and remove it."""
    path = folder / f"{number}.mp4"
    path.write_bytes(damaged(files, number, seed))
    begin = time.monotonic()
    kind = "no_audio_stream"
    try:
        if probe(path).has_audio:
            results = list(read_clips(path, STARTS, MEDIA))
            assert len(results) == len(STARTS)
            faults = [result for result in results if isinstance(result, MediaError)]
            kind = faults[0].reason if len(faults) == len(results) else "clips"
    except MediaError as error:
        kind = error.reason
    path.unlink()
    return Outcome(number, kind, time.monotonic() - begin)


def fuzz(folder: Path, count: int, seed: int, workers: int) -> Iterator[Outcome | MediaError]:
    """Yield what becomes of each of ``count`` damaged files; those that hung or killed a process stay in ``folder``."""
    files = originals(folder)
    for path in folder.iterdir():
        path.unlink()
    yield from process_pool.map(functools.partial(read, files, seed, folder), range(count), workers, LIMIT)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Read damaged media files and count what becomes of them.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--keep", type=Path, default=Path("fuzzed"), help="folder for what hung or crashed")
    args = parser.parse_args()
    kinds: Counter[str] = Counter()
    slowest = Outcome(0, "", 0.0)
    with tempfile.TemporaryDirectory() as folder, Progress(args.count, "fuzzing", "files") as bar:
        for outcome in fuzz(Path(folder), args.count, args.seed, args.workers):
            if isinstance(outcome, MediaError):
                kinds[outcome.reason] += 1
            else:
                kinds[outcome.kind] += 1
                slowest = max(slowest, outcome, key=lambda one: one.seconds)
            bar.update()
        left = sorted(Path(folder).iterdir())
        if left:
            shutil.copytree(folder, args.keep, dirs_exist_ok=True)
    print(f"{kinds.total()} files: {dict(kinds.most_common())}; {len(left)} kept")
    print(f"the slowest, number {slowest.number}, took {slowest.seconds:.1f} s and gave {slowest.kind}")


if __name__ == "__main__":
    main()
