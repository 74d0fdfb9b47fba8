"""Benchmark of cutting videos into clips: ``shard.py clips`` and video2dataset, on the same files and windows.

    python -m benchmarks.sharding --videos DIR --video2dataset ENV/bin/python --output benchmarks/results/sharding.json

Both write WebDataset tars of clips of 16 frames at 10 fps, 256×256, with their sound: ours as JPEGs and PCM from one
pass over each video, video2dataset as mp4 and mp3 by its subsamplers, each of which runs ffmpeg, with cuts where it is
told ("exact"; "low" copies packets, misses windows between key frames and fails on some files). Both work one file at a
time. What counts is processor time (user + system, of all processes, ffmpeg's included), which a busy machine disturbs
least; start-up counts for ours and not for video2dataset. The rounds take turns, and the best one counts.

video2dataset's own subsamplers are called in the order of its download worker, because that worker itself runs in
neither of its last releases once a video has sound and is resized: in 1.2.0 it changes a dictionary that it iterates
over (and the wheel lacks its configurations), in 1.3.0, by its source, it asks its subsamplers for an attribute that
they lack. ffmpeg and ffprobe have to be on PATH.
"""

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.report import machine, publish
from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.decode import SUFFIXES, probe
from mmldm_scale.shards.reader import ShardSet

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 1.6  # of a clip
_PR_SET_CHILD_SUBREAPER = 36

# Its download worker, without the workers: sound as a stream of its own, clips of both, then the subsamplers of video.
VIDEO2DATASET = """
import json, resource, sys, tempfile, time
import webdataset
from video2dataset.data_reader import video2audio
from video2dataset.subsamplers import ClippingSubsampler, FrameSubsampler, ResolutionSubsampler

def cpu():
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)

table, output = sys.argv[1:]
begin, wall = cpu(), time.monotonic()
cut = ClippingSubsampler(5, {"video": "mp4", "audio": "mp3"}, precision="exact")
steps = [ResolutionSubsampler(video_size=256, resize_mode=["scale", "crop"]), FrameSubsampler(frame_rate=10)]
clips = 0
with webdataset.TarWriter(output) as tar:
    for number, row in enumerate(json.load(open(table))):
        with tempfile.TemporaryDirectory() as folder:
            sound = open(video2audio(row["url"], "mp3", folder), "rb").read()
        streams = {"video": [open(row["url"], "rb").read()], "audio": [sound]}
        streams, metas, error = cut(streams, {"clips": row["clips"], "key": str(number)})
        sounds = streams.pop("audio")
        for step in steps:
            streams, metas, error = step(streams, metas)
            assert error is None, error
        for video, sound, meta in zip(streams["video"], sounds, metas):
            tar.write({"__key__": meta["key"], "mp4": video, "mp3": sound, "json": {"clips": meta["clips"]}})
            clips += 1
print(json.dumps({"clips": clips, "cpu": cpu() - begin, "wall": time.monotonic() - wall}))
"""


@dataclass(frozen=True)
class Cost:
    """What a run took, in seconds."""

    wall: float
    cpu: float


def main() -> int:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos; those without sound are left out")
    parser.add_argument("--video2dataset", type=Path, metavar="PYTHON", help="of its environment; default: ours alone")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans of a run become our children, and are counted
    with tempfile.TemporaryDirectory() as folder:
        results = {"machine": {**machine(), "ffmpeg": ffmpeg_version()}, **compare(Path(folder), args)}
    publish(results, args.output)
    return 0


def compare(folder: Path, args: argparse.Namespace) -> dict[str, object]:
    """Run every pipeline ``args.rounds`` times, in turns, and return costs, clips per second of a core, and ratios."""
    videos = link_videos(args.videos, folder / "videos")
    table = folder / "videos.json"
    costs: dict[str, list[Cost]] = {}
    clips: dict[str, int] = {}
    for number in range(args.rounds):
        output = folder / f"ours-{number}"
        costs.setdefault("ours", []).append(run(ours(videos, output)))
        clips["ours"] = len(ShardSet(output, "clips"))
        table.write_text(json.dumps(windows(videos, output)))
        if args.video2dataset:
            costs.setdefault("video2dataset", []).append(
                theirs(args.video2dataset, table, folder / f"{number}.tar", clips)
            )
        print({name: [round(cost.cpu, 1) for cost in each] for name, each in costs.items()}, file=sys.stderr)
    best = {name: min(each, key=lambda cost: cost.cpu) for name, each in costs.items()}
    rates = {name: round(clips[name] / cost.cpu, 2) for name, cost in best.items()}
    return {
        "videos": [path.name for path in sorted(videos.iterdir())],
        "clips": clips,
        "seconds": {name: asdict(cost) for name, cost in best.items()},
        "clips_per_second_per_core": rates,
        "ratio": {name: round(rates["ours"] / rate, 2) for name, rate in rates.items() if name != "ours" and rate},
    }


def link_videos(source: Path, folder: Path) -> Path:
    """Make ``folder`` of links to the videos of ``source`` that have sound, and return it."""
    folder.mkdir()
    for path in sorted(source.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            try:
                usable = probe(path).has_audio
            except MediaError:
                usable = False
            if usable:
                (folder / path.name).symlink_to(path.resolve())
    return folder


def ours(videos: Path, output: Path) -> list[str]:
    """Return the command that cuts all clips of ``videos`` with one decoding process."""
    config = ROOT / "configs" / "data" / "landscape.yaml"
    shard = [sys.executable, str(ROOT / "data_tools" / "shard.py"), "clips", "--workers", "1"]
    return [*shard, "--input", str(videos), "--output", str(output), "--config", str(config), "silence_db=-1000"]


def theirs(python: Path, table: Path, output: Path, clips: dict[str, int]) -> Cost:
    """Run video2dataset's subsamplers over ``table``, note in ``clips`` how many they made, and return the cost."""
    command = [str(python), "-c", VIDEO2DATASET, str(table), str(output)]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
    clips["video2dataset"] = found.pop("clips")
    return Cost(**{name: round(seconds, 2) for name, seconds in found.items()})


def windows(videos: Path, clips: Path) -> list[dict[str, object]]:
    """Return a row for each video: its path, and the windows that we cut of it, for video2dataset."""
    shards = ShardSet(clips, "clips")
    rows: dict[str, list[list[float]]] = {}
    for number in range(len(shards)):
        meta = shards[number].meta
        spans = rows.setdefault(meta["path"], [])
        spans.append([round(meta["start"], 3), round(meta["start"] + SECONDS, 3)])
    return [{"url": str(videos / path), "clips": spans} for path, spans in rows.items()]


def run(command: Sequence[str]) -> Cost:
    """Return what ``command`` and every process that it started took, until the last of them ended."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    begin = time.monotonic()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    errors = process.stderr.read() if process.stderr else ""
    cpu, status = 0.0, 0
    while True:
        try:
            pid, ending, usage = os.wait4(-1, 0)
        except ChildProcessError:
            break
        cpu += usage.ru_utime + usage.ru_stime
        status = os.waitstatus_to_exitcode(ending) if pid == process.pid else status
    process.returncode = status
    if status:
        raise RuntimeError(f"{' '.join(command)[:300]}: status {status}: {errors[-2000:]}")
    return Cost(round(time.monotonic() - begin, 2), round(cpu, 2))


def ffmpeg_version() -> str:
    """Return what the ffmpeg on PATH, which video2dataset runs, says of itself."""
    found = (
        subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True).stdout if shutil.which("ffmpeg") else ""
    )
    return found.split(" Copyright")[0]


if __name__ == "__main__":
    sys.exit(main())
