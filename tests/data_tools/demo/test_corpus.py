"""The corpus is real media whose JSON is true: what it says is seen and heard, and nothing else is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_tools.demo.corpus import make_corpus
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.media.decode import probe, read_clips

RATE = 16000
SECONDS = 2.0
MEDIA = MediaConfig(frames=40, fps=20.0, size=64, audio=AudioImageConfig(sample_rate=RATE))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> list[Path]:
    return make_corpus(tmp_path_factory.mktemp("corpus"), videos=8, seconds=SECONDS)


def truth(path: Path) -> dict:
    return json.loads(path.with_suffix(".json").read_text())


def test_layout_and_format(corpus):
    folder = corpus[0].parent.parent
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == sorted(
        f"{kind}/{kind}_{number:04d}.{end}"
        for kind in ("ball", "bell", "blocks", "rain")
        for number in range(2)
        for end in ("json", "mp4")
    )
    for path in corpus:
        info, told = probe(path), truth(path)
        assert info.seconds == pytest.approx(SECONDS, abs=0.001)
        assert (info.width, info.height, info.fps, info.sample_rate) == (128, 128, 20.0, 44100)
        assert (told["class"], told["size"], told["fps"], told["seed"]) == (path.parent.name, 128, 20.0, 0)
        assert all(0 <= hit["time"] < SECONDS and 0 <= hit["x"] <= 1 and 0 <= hit["y"] <= 1 for hit in told["hits"])
        assert [hit["time"] for hit in told["hits"]] == sorted(hit["time"] for hit in told["hits"])


def onset_strength(waveform: np.ndarray, window: int = 64) -> np.ndarray:
    """Return how much the level rises (in dB over 4 ms) at each 4 ms step."""
    steps = waveform[: len(waveform) // window * window].reshape(-1, window)
    level = 10 * np.log10((steps**2).mean(1) + 1e-6)
    return np.diff(level, prepend=level[0])


def test_hits_are_heard_when_the_truth_says(corpus):
    """The level jumps within 10 ms of at least nine hits in ten: the rest fall into the noise of the one before."""
    heard = told = 0
    for path in corpus:
        (clip,) = read_clips(path, [0.0], MEDIA)
        strength = onset_strength(clip.waveform)
        for hit in truth(path)["hits"]:
            at = round(hit["time"] * RATE / 64)
            told += 1
            heard += strength[max(0, at - 2) : at + 4].max() > 3
    assert told > 30
    assert heard >= 0.9 * told


def test_nothing_sounds_that_is_not_told(corpus):
    for path in corpus:
        (clip,) = read_clips(path, [0.0], MEDIA)
        times = np.array([hit["time"] for hit in truth(path)["hits"]])
        for step in np.flatnonzero(onset_strength(clip.waveform) > 12):
            assert np.abs(times - step * 64 / RATE).min() < 0.025, (path.name, step * 64 / RATE)
        first = round((times[0] - 0.02) * RATE)
        if first > 0:
            assert np.abs(clip.waveform[:first]).max() < 0.02


def test_hits_are_seen_where_the_truth_says(corpus):
    """Within two frames of a hit, the picture changes around it."""
    for path in corpus:
        (clip,) = read_clips(path, [0.0], MEDIA)
        frames = clip.frames.astype(int)
        for hit in truth(path)["hits"]:
            at = int(np.ceil(hit["time"] * 20 - 1e-6))
            if not 1 <= at < len(frames):
                continue
            x, y = (min(55, max(8, round(64 * hit[axis]))) for axis in ("x", "y"))
            change = np.abs(frames[at] - frames[at - 1])[y - 8 : y + 9, x - 8 : x + 9]
            assert change.max() > 40, (path.name, hit)


def test_every_clip_of_the_demo_has_sound(tmp_path):
    for path in make_corpus(tmp_path, videos=4, seconds=4.0, seed=5, size=32):
        hits = np.array([hit["time"] for hit in truth(path)["hits"]])
        assert len(hits) >= 8
        assert np.diff([0.0, *hits, 4.0]).max() < 1.6


def test_classes_differ_in_timbre(corpus):
    centre = {}
    for path in corpus:
        (clip,) = read_clips(path, [0.0], MEDIA)
        power = np.abs(np.fft.rfft(clip.waveform)) ** 2
        hertz = np.fft.rfftfreq(len(clip.waveform), 1 / RATE)
        centre.setdefault(path.parent.name, []).append(power @ hertz / power.sum())
    assert max(centre["ball"]) < 400 < min(centre["bell"])
    assert min(centre["rain"]) > 1.4 * max(max(centre["bell"]), max(centre["blocks"]))


def test_same_arguments_same_bytes_whatever_the_processes(corpus, tmp_path):
    again = make_corpus(tmp_path, videos=4, seconds=SECONDS, processes=2)
    for one, other in zip(corpus[:4], again, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.with_suffix(".json").read_bytes() == other.with_suffix(".json").read_bytes()
    different = make_corpus(tmp_path / "other", videos=1, seconds=SECONDS, seed=1)
    assert different[0].read_bytes() != corpus[0].read_bytes()


def test_what_exists_is_kept_and_what_is_missing_made(tmp_path):
    first, second = make_corpus(tmp_path, videos=2, seconds=0.5, size=32)
    bytes_before = second.read_bytes()
    os.utime(first, (0, 0))
    second.with_suffix(".json").unlink()  # as if stopped before it was done
    second.write_bytes(b"half")
    assert make_corpus(tmp_path, videos=2, seconds=0.5, size=32) == [first, second]
    assert first.stat().st_mtime == 0
    assert second.read_bytes() == bytes_before
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def test_another_corpus_in_the_folder_is_an_error(tmp_path):
    make_corpus(tmp_path, videos=1, seconds=0.5, size=32)
    with pytest.raises(UserError, match="seed"):
        make_corpus(tmp_path, videos=1, seconds=0.5, size=32, seed=1)
    with pytest.raises(UserError, match="video"):
        make_corpus(tmp_path / "none", videos=0)


def test_the_script_runs(tmp_path):
    root = Path(__file__).parents[3]
    command = [sys.executable, "data_tools/demo/corpus.py", "--output", str(tmp_path / "new"), "--videos", "2"]
    command += ["--seconds", "0.5", "--size", "32"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("*.mp4"))) == 2
    assert "2 videos" in done.stdout
    refused = subprocess.run([*command, "--seed", "7"], cwd=root, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    assert "seed" in refused.stderr
