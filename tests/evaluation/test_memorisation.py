"""``mmldm memorisation``: what it finds, shares among jobs, resumes, reports and refuses."""

import base64
import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from mmldm_scale import cli
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.features import extraction
from mmldm_scale.evaluation.memorisation import command, neighbours
from tests.support.toy_evaluation import ToyClips, ToyFrames

pytestmark = pytest.mark.usefixtures("toys")

METRIC = {"distance": "frechet", "extractor": "toy_frames"}
PROTOCOL = {
    "reference": {"split": "training set"},
    "frames": {"count": 2},
    "batch_size": 4,
    "resamples": 200,
    "metrics": {"fd": METRIC, "energy": {"distance": "mean", "extractor": "toy_sound"}},
}
COPIES = {3: 70, 8: 11, 21: 99}  # samples by the training clips that they are copies of


class PartlyCopied(ToyClips):
    """Clips of their own, but for :data:`COPIES` of the ``training`` clips."""

    training: ToyClips

    def read(self, index: int) -> ClipRecord:
        own = super().read(index)
        return dataclasses.replace(own, clip=self.training.read(COPIES[index]).clip) if index in COPIES else own


@pytest.fixture
def sets(monkeypatch) -> dict[str, ToyClips]:
    """The sets that paths lead to."""
    copied = PartlyCopied("copied", 60)
    found = {
        "fresh": ToyClips("fresh", 60),
        "copied": copied,
        "training": ToyClips("training", 100),
        "held_out": ToyClips("held_out", 80),
        "few": ToyClips("few", 19),
    }
    copied.training = found["training"]
    monkeypatch.setattr(command, "open_clip_set", lambda path: found[path])
    return found


@pytest.fixture
def protocol(tmp_path) -> Path:
    return write(tmp_path / "trial.yaml")


def write(file: Path, **changes: object) -> Path:
    file.write_text(yaml.safe_dump({**PROTOCOL, **changes}))
    return file


def run(protocol: Path, output: Path, *more: object, samples: str = "copied", **options: str) -> int:
    options = {"training": "training", "held-out": "held_out", "extractor": "toy_frames", **options}
    words = [f"--{name}={value}" for name, value in options.items()]
    words += ["--samples", samples, "--protocol", protocol, "--output", output, "--device", "cpu"]
    return cli.main([str(word) for word in ["memorisation", *words, *more, f"weights.toy_frames={Path(__file__)}"]])


def report(output: Path) -> dict:
    return json.loads((output / "memorisation.json").read_text())


def features(clips: ToyClips) -> np.ndarray:
    """What ToyFrames makes of two frames of each clip, (N, 3) float32."""
    records = [clips.read(i) for i in range(len(clips))]
    return np.array([(r.clip.frames[:2].astype(np.float32) / 255).mean(axis=(0, 1, 2)) for r in records])


def test_copies_of_training_clips_are_found_and_shown(sets, protocol, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(protocol, out) == 0
    content = report(out)
    closest = content["nearest"]["samples"]
    pairs = {(pair["clip"], pair["training_clip"]) for pair in closest[:3]}
    assert pairs == {(f"clip_{i:04d}", f"clip_{j:04d}") for i, j in COPIES.items()}
    assert all(pair["distance"] < 1e-9 for pair in closest[:3])
    assert closest[3]["distance"] > 1e-5
    assert content["closer_than_every_held_out_clip"] >= 3
    close = content["closer_samples"]
    assert close["share"] >= 3 / 60
    assert close["interval"][0] <= close["share"] <= close["interval"][1]
    page, printed = (out / "memorisation.html").read_text(), capsys.readouterr().out
    for text in (page, printed):
        assert f"{close['share']:.1%} of the samples" in text
        assert re.search(r"60 samples, 80 held-out clips, 100 training clips", text)
    assert f"closest: {closest[0]['clip']} to {closest[0]['training_clip']}, distance" in printed
    assert page.count("<svg") == 1
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 2 * 24
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))) for picture in pictures[:8]]
    for sample, neighbour in zip(shown[0:6:2], shown[1:6:2], strict=True):
        assert np.array_equal(sample, neighbour)
    assert not np.array_equal(shown[6], shown[7])


def test_fresh_samples_are_as_far_away_as_held_out_clips(sets, protocol, tmp_path):
    assert run(protocol, tmp_path / "out", samples="fresh") == 0
    close = report(tmp_path / "out")["closer_samples"]
    assert close["interval"][0] <= close["expected"] == 0.05 <= close["interval"][1]


def test_distances_are_those_of_centred_features(sets, protocol, tmp_path):
    assert run(protocol, tmp_path / "out", samples="fresh") == 0
    x, y = features(sets["fresh"]), features(sets["training"])
    a, b = x - y.mean(axis=0), y - y.mean(axis=0)
    distances = 1 - a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    nearest = {pair["clip"]: pair for pair in report(tmp_path / "out")["nearest"]["samples"]}
    for i in range(60):
        pair = nearest[f"clip_{i:04d}"]
        assert pair["training_clip"] == f"clip_{distances[i].argmin():04d}"
        assert pair["distance"] == pytest.approx(distances[i].min(), rel=1e-3, abs=1e-5)


def test_three_jobs_and_small_chunks_give_the_same_result(sets, protocol, tmp_path, capsys, monkeypatch):
    assert run(protocol, tmp_path / "one") == 0
    for part in (3, 1, 2):
        assert not (tmp_path / "three/memorisation.json").exists()
        assert run(protocol, tmp_path / "three", "--part", f"{part}/3") == 0
    one, three = report(tmp_path / "one"), report(tmp_path / "three")
    command_lines = one.pop("command"), three.pop("command")
    assert one == three
    assert all(line.startswith("mmldm memorisation ") for line in command_lines)
    monkeypatch.setattr(neighbours, "ROWS", 7)
    monkeypatch.setattr(extraction, "STREAMED", 2)
    assert run(protocol, tmp_path / "small") == 0
    small = report(tmp_path / "small")
    assert [pair["training_clip"] for pair in small["nearest"]["samples"]] == [
        pair["training_clip"] for pair in one["nearest"]["samples"]
    ]
    assert small["closer_samples"]["share"] == one["closer_samples"]["share"]


def test_a_killed_job_is_resumed_and_a_report_is_not_overwritten(sets, protocol, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ToyFrames, "fail_after", 21)  # batches, within the training clips
    assert run(protocol, tmp_path / "out") == 130
    monkeypatch.setattr(ToyFrames, "fail_after", None)
    monkeypatch.setattr(ToyFrames, "batches", 0)
    assert run(protocol, tmp_path / "out") == 0
    assert ToyFrames.batches == 15 + 25 + 20 - 21
    first = capsys.readouterr().out
    monkeypatch.setattr(command, "_compare", None)
    assert run(protocol, tmp_path / "out") == 0
    assert capsys.readouterr().out == first
    assert run(protocol, tmp_path / "out", samples="fresh") == 2
    assert "is of another comparison (samples); choose another --output" in capsys.readouterr().err


def test_held_out_clips_that_the_model_was_trained_on_are_named(sets, protocol, tmp_path, capsys):
    assert run(protocol, tmp_path / "out", **{"held-out": "training"}) == 0
    assert "100 of the held-out clips are copies of training clips" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"held-out": "few"}, "--held-out few: has 19 clips; must have at least 20"),
        (
            {},
            {"extractor": "i3d"},
            "--extractor i3d: must be one of toy_frames, toy_sound, those of protocol trial.yaml",
        ),
        ({}, {"extractor": "toy_sound"}, "fresh: features of a clip are not numbers, so it has no distance"),
        (
            {"metrics": {"fd": METRIC, "kd": {**METRIC, "options": {"mode": "evaluation"}}}},
            {},
            "--extractor toy_frames: protocol trial.yaml uses it with 2 sets of options, not one",
        ),
        (
            {"metrics": {"fd": {**METRIC, "options": {"mode": "training"}}}},
            {},
            "--extractor toy_frames: is in training mode in protocol trial.yaml",
        ),
    ],
)
def test_mistakes_are_named_in_one_line(sets, tmp_path, capsys, changes, options, message):
    assert run(write(tmp_path / "trial.yaml", **changes), tmp_path / "out", samples="fresh", **options) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmldm")]
    assert len(lines) == 1
    assert message in lines[0]


def test_check_reads_one_clip_of_each_set(sets, protocol, tmp_path, capsys):
    assert run(protocol, tmp_path / "out", "--check", samples="fresh") == 0
    out = capsys.readouterr().out
    assert "60 samples, 80 held-out clips, 100 training clips can be compared; 0 of 60 blocks of features" in out
    assert [len(clips.reads) for clips in sets.values()] == [1, 0, 1, 1, 0]
