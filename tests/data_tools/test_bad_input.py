"""Whatever oddity a collection of videos has, the command cuts it in step or drops it with its reason."""

import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.decode import read_clips
from mmldm_scale.media.encode import write_video
from mmldm_scale.shards.clips import decode_clip
from tests.support.datasets import odd_videos
from tests.support.datasets.recordings import HITS, onsets

ROOT = Path(__file__).parents[2]
MEDIA = MediaConfig(frames=16, fps=20.0, size=32, audio=AudioImageConfig(sample_rate=16000))  # 0.8 s
HALF_FRAME = 0.5 / MEDIA.fps
OVERRIDES = ["media.frames=16", "media.fps=20", "media.size=32", "media.audio.sample_rate=16000", "stride=4"]
OVERRIDES += ["samples_per_shard=16", "--workers", "2", "--timeout", "3"]
PRIMING = 1024 / 44100 + 0.002  # seconds of encoder delay that files without edit lists present as sound

FAULTY_DECODER = """
import ctypes, av
real = av.open
def faulty(file, *args, **kwargs):
    if file.endswith("crash.mp4"):
        ctypes.string_at(0)
    if file.endswith("hang.mp4"):
        ctypes.PyDLL(None).sleep(1000)
    return real(file, *args, **kwargs)
av.open = faulty
"""


@dataclass
class Made:
    output: Path
    good: dict[str, dict]
    faulty: dict[str, str]
    finished: subprocess.CompletedProcess
    samples: list[tuple[dict, Clip]]  # meta and clip of each
    dropped: list[dict]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """The clip set of a folder of odd videos, made by the command with a decoder that crashes and hangs."""
    folder = tmp_path_factory.mktemp("odd")
    videos, output = folder / "videos", folder / "set"
    (videos / "faulty").mkdir(parents=True)
    good, faulty = odd_videos.make(videos), odd_videos.make_faulty(videos / "faulty")
    (folder / "sitecustomize.py").write_text(FAULTY_DECODER)
    finished = subprocess.run(
        [sys.executable, ROOT / "data_tools/shard.py", "clips", "--input", videos, "--output", output, *OVERRIDES],
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr
    samples = [sample for tar in sorted(output.glob("*.tar")) for sample in _samples(tar)]
    dropped = [json.loads(line) for line in (output / "dropped.jsonl").read_text().splitlines()]
    return Made(output, good, faulty, finished, samples, dropped)


def _samples(tar: Path) -> list[tuple[dict, Clip]]:
    members: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tar) as archive:
        for member in archive:
            key, _, name = member.name.partition(".")
            members.setdefault(key, {})[name] = archive.extractfile(member).read()
    return [(json.loads(parts["json"]), decode_clip(parts)) for parts in members.values()]


def test_every_faulty_file_is_dropped_with_its_reason(made):
    found = {row["path"].removeprefix("faulty/"): row["reason"] for row in made.dropped if "faulty/" in row["path"]}
    assert found == made.faulty
    assert not any(meta["path"].startswith("faulty/") for meta, _ in made.samples)


def test_every_odd_video_gives_clips(made):
    kept = Counter(meta["path"] for meta, _ in made.samples)
    assert set(kept) == set(made.good)
    assert min(kept.values()) >= 6
    assert {row["reason"] for row in made.dropped if row["path"] in made.good} == {"silent"}  # beyond the last beep


def test_the_counts_add_up(made):
    manifest = json.loads((made.output / "manifest.json").read_text())
    assert manifest["videos"] == len(made.good) + len(made.faulty)
    assert manifest["failed_files"] == len(made.faulty)
    assert manifest["samples"] == len(made.samples)
    assert manifest["samples"] + manifest["dropped"] == manifest["candidates"] + manifest["failed_files"]
    assert len(made.dropped) == manifest["dropped"] == sum(manifest["reasons"].values())
    keys = [row["key"] for row in made.dropped]
    assert len(set(keys)) == len(keys)


def test_nothing_is_written_elsewhere_and_nothing_said_but_progress(made):
    top = made.output.parent
    assert {path.name for path in top.iterdir()} - {"__pycache__"} == {"videos", "set", "sitecustomize.py"}
    assert "Traceback" not in made.finished.stderr
    good, faulty = len(made.good), len(made.faulty)
    assert f"{good + faulty} entries found = {good} taken + {faulty} dropped" in made.finished.stdout


def test_sound_and_picture_are_within_half_a_frame_from_shards_back_to_mp4(made, tmp_path):
    checked = Counter()
    for meta, clip in made.samples:
        recipe = made.good[meta["path"]]
        write_video(tmp_path / "back.mp4", clip.frames, MEDIA.fps, clip.waveform, 16000)
        (back,) = read_clips(tmp_path / "back.mp4", [0.0], MEDIA)
        for shown in (clip, back):
            checked[meta["path"]] += _check_hits(shown, meta["start"] + _zero(recipe), recipe)
    assert set(checked) == set(made.good)
    assert min(checked.values()) >= 10


def _zero(recipe: dict) -> float:
    """Return the first moment with picture and sound, on the clock of the hits."""
    return max(recipe["pictures"][0], recipe["sound"][0]) + recipe.get("skipped", 0.0)


def _check_hits(clip: Clip, start: float, recipe: dict) -> int:
    """Check that the hits well inside the clip, which begins at ``start``, are seen and heard; return how many."""
    flashes, beeps = (np.add(found, start) for found in onsets(clip, MEDIA.fps, 16000))
    inside = [hit for hit in HITS if start + 0.1 <= hit <= start + MEDIA.seconds - 0.15]
    for hit in inside:
        shown = min(time for time in recipe["pictures"] if time >= hit - 0.0005)  # the source's own frames are late
        heard, seen = min(beeps - hit, key=abs), min(flashes - shown, key=abs)
        if recipe.get("gap", (9, 9))[0] <= hit < recipe.get("gap", (9, 9))[1]:
            continue
        assert abs(heard) <= PRIMING, recipe
        assert abs(seen - heard) <= HALF_FRAME + 0.002, recipe
    return len(inside)


def test_a_second_run_finds_nothing_to_do(made):
    before = {path: path.stat().st_mtime_ns for path in made.output.rglob("*.tar")}
    again = subprocess.run(
        [sys.executable, ROOT / "data_tools/shard.py", "verify", "--input", made.output],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (again.returncode, " 0 faults" in again.stdout) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in made.output.rglob("*.tar")} == before
