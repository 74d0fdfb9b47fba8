"""``mmldm table``: what it makes of trained models, what it says of each figure, and that it does nothing twice."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from mmldm_scale import cli
from mmldm_scale.evaluation import protocols, tables
from mmldm_scale.evaluation.tables import text as text_of_tables
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.encode import write_video
from mmldm_scale.sampling.pipeline import Pipeline
from tests.support import toy_evaluation
from tests.support.datasets.clip_sets import write_clips
from tests.support.tiny_models.weights_folders import TinyModel, save_model
from tests.support.toy_evaluation import ToyFrames

PROTOCOL = {
    "title": "a trial",
    "samples": {"count": 6},
    "reference": {"split": "training set"},
    "frames": {"count": 2},
    "batch_size": 2,
    "resamples": 20,
    "floor_repeats": 2,
    "metrics": {
        "fd": {"title": "FD-toy", "distance": "frechet", "extractor": "toy_frames"},
        "energy": {"title": "energy", "distance": "mean", "extractor": "toy_sound", "better": "lower"},
    },
}
TABLE = {
    "title": "Table 0: a sea",
    "about": "Some sea.",
    "protocols": ["trial.yaml"],
    "sets": {"sea": {"title": "Sea"}},
    "sizes": True,
    "rows": {
        "svg": {"label": "tiny", "runs": {"sea": "tiny"}},
        "v2a": {"label": "tiny-v2a", "task": "v2a", "runs": {"sea": "tiny"}},
        "other": {"label": "other", "runs": {"sea": "other"}},
    },
    "published": [
        {
            "label": "theirs",
            "protocol": "trial.yaml",
            "row": "svg",
            "values": {"sea": {"fd": 7.5}},
            "source": "A",
        },
        {"label": "elsewhere", "protocol": "clean", "values": {"sea": {"fd": 7.25}}, "source": "B"},
        {"label": "unknown", "values": {"sea": {"fd": 7.125}}, "parameters": "3 M", "source": "C"},
    ],
}


def join(pipeline: Pipeline, task: str, indices: range, *others: object) -> list[Clip]:
    """Return noise as samples, in place of what the model would make in seconds."""
    media, draws = pipeline.media, [np.random.default_rng(index) for index in indices]
    shape = (media.frames, media.size, media.size, 3)
    return [
        Clip(draw.integers(0, 256, shape, np.uint8), draw.uniform(-1, 1, media.audio_samples).astype(np.float32))
        for draw in draws
    ]


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    toy_evaluation.register(monkeypatch)
    monkeypatch.setattr(Pipeline, "windows", lambda *_: [])
    monkeypatch.setattr(Pipeline, "join", join)
    monkeypatch.setattr(ToyFrames, "fail_after", None)
    monkeypatch.setattr(ToyFrames, "batches", 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> TinyModel:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with protocol, table and clips in it."""
    write_clips(tmp_path / "data/sea/clips", 8)
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(PROTOCOL, sort_keys=False))
    held_out = {**PROTOCOL, "reference": {"split": "held-out clips"}}
    (tmp_path / "held_out.yaml").write_text(yaml.safe_dump(held_out, sort_keys=False))
    (tmp_path / "table0.yaml").write_text(yaml.safe_dump(TABLE, sort_keys=False))
    (tmp_path / "weights").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(model: TinyModel | None, *more: str, weights: str = "weights.toy_frames=weights") -> int:
    runs = [f"runs.tiny={model.dit}"] if model else []
    sample = ["sample.steps=1", "sample.decoding.steps=1", "sample.batch_size=3"]
    words = ["table", "table0.yaml", "--data", "data", "--output", "out", "--device", "cpu"]
    return cli.main([*words, *runs, *sample, *([weights] if weights else []), *more])


def test_a_table_is_resumed_has_ours_beside_the_papers_and_is_not_computed_twice(model, folder, capsys, monkeypatch):
    monkeypatch.setattr(ToyFrames, "fail_after", 2)
    assert run(model) == 130
    assert not (folder / "out/table.json").exists()
    monkeypatch.setattr(Pipeline, "windows", None)  # all samples are there
    monkeypatch.setattr(ToyFrames, "fail_after", None)
    capsys.readouterr()
    assert run(model) == 0
    printed = capsys.readouterr().out
    made = json.loads((folder / "out/table.json").read_text())
    (section,) = made["sections"]
    report = json.loads((folder / "out/measured/trial.yaml/sea-svg/report.json").read_text())
    figure = report["figures"]["fd"]
    assert section["rows"][0]["values"]["sea"]["fd"]["value"] == figure["value"]
    assert section["rows"][0]["values"]["sea"]["fd"]["interval"] == figure["interval"]
    assert section["columns"][0]["floor"] == figure["floor"]
    assert section["rows"][0]["parameters"].endswith(" M")
    assert made["left_out"] == [
        "Sea: inputs.sea is not given: left out: tiny-v2a",
        "Sea: runs.other is not given: left out: other",
    ]
    markdown, page = (folder / "out/table.md").read_text(), (folder / "out/table.html").read_text()
    value = f"{figure['value']:.5g} [{figure['interval'][0]:.5g}, {figure['interval'][1]:.5g}]"
    for text in (printed, markdown, page):
        for part in ("protocol trial.yaml", "Sea FD-toy ↓", value, f"{figure['floor']:.5g}", "7.5", "7.125"):
            assert part in text
        assert "7.25" not in text
        assert "published rows that are not shown, for theirs is another protocol: 1" in text
    for text in (markdown, page):
        for part in ("6 of 6 clips", "6 of 8 clips", "training set", "Toy network of frames, weights ffffffffffff"):
            assert part in text
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[0] for row in rows[2:5]] == ["| tiny", "| theirs", f"| {text_of_tables.FLOOR}"]
    assert page.count("<svg") == 2

    before = {file: file.read_bytes() for file in (folder / "out").glob("table.*")}
    monkeypatch.setattr(ToyFrames, "fail_after", ToyFrames.batches)
    assert run(model) == 0
    assert {file: file.read_bytes() for file in before} == before


def write_videos(folder: Path) -> Path:
    folder.mkdir()
    for number in range(6):
        frames = np.full((10, 32, 32, 3), 20 * number, np.uint8)
        write_video(folder / f"{number}.mp4", frames, 10, np.full(8000, 0.1 * number, np.float32), 8000)
    return folder


def test_a_trial_is_marked_and_what_is_given_or_lacks_weights_is_not_measured(model, folder, capsys):
    videos = write_videos(folder / "videos")
    assert run(model, "--num-samples", "4", f"inputs.sea={videos}", weights="") == 0
    (section,) = json.loads((folder / "out/table.json").read_text())["sections"]
    assert (section["not_protocol"], section["published"]) == ("not protocol trial.yaml: 4 of 6 samples", [])
    assert section["not_measured"] == {"FD-toy": "weights.toy_frames"}
    assert [list(row["values"]["sea"]) for row in section["rows"]] == [["energy"], ["energy"]]
    printed = capsys.readouterr().out
    assert "not protocol trial.yaml: 4 of 6 samples" in printed
    assert "FD-toy: not measured, weights.toy_frames is not given" in printed
    assert "theirs " not in printed.replace("theirs is", "")
    assert run(model, "--num-samples", "4", f"inputs.sea={videos}") == 0  # now with weights
    (section,) = json.loads((folder / "out/table.json").read_text())["sections"]
    assert [list(row["values"]["sea"]) for row in section["rows"]] == [["fd", "energy"], ["energy"]]


def test_check_makes_nothing(model, folder, capsys):
    assert run(model, "--check") == 0
    assert "out/samples/tiny: 6 samples of task svg can be made" in capsys.readouterr().out
    assert not list((folder / "out").rglob("*.mp4"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["runs.tyni=x"], "runs.tyni: no row has this model; must be one of tiny, other"),
        (["clips.sea=nowhere"], "nowhere: no such file or folder"),
        (["--num-samples", "9"], "clips: has 8 clips; 9 are needed as training set"),
        (["--num-samples", "3"], "--num-samples 3: must be at least 4"),
        (["weights.toy_frames=lost"], "weights.toy_frames=lost: no such file or folder"),
        (["--protocol", "held_out.yaml"], "data/sea/clips_test: no such file or folder"),
        (["runs.other=lost"], "lost: no such folder"),
        (["smaple.steps=3"], "smaple: unknown key; did you mean 'sample'?"),
        (["--protocol", "claen"], "--protocol claen: must be one of"),
    ],
)
def test_mistakes_are_named_before_anything_is_made(model, folder, capsys, more, message):
    assert run(model, *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmldm")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (folder / "out").exists()


def test_runs_weights_and_tables_are_asked_for(folder, capsys):
    assert run(None) == 2
    assert "runs: no row can be made; name the trained models: runs.tiny=DIR runs.other=DIR" in capsys.readouterr().err
    assert cli.main(["table", "2", "--output", "out"]) == 2
    assert "table 2: must be one of 1, 4, 5, 6, or the path of a YAML file" in capsys.readouterr().err
    assert cli.main(["table", "1", "--output", "out"]) == 2
    message = "protocol mmdiffusion: no network has weights; give at least one of weights.i3d=PATH, weights.audioclip="
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["1", "4", "5", "6"])
def test_shipped_tables_publish_figures_of_metrics_that_their_protocols_have(name):
    table = tables.load(name)
    of_protocols = {each: protocols.load(each) for each in table.protocols}
    for row in table.published:
        metrics = of_protocols[row.protocol or table.protocols[0]].metrics
        assert row.protocol in ("", *table.protocols)
        assert all(values.keys() <= metrics.keys() for values in row.values.values())
        assert not table.rows or row.row in ("", *table.rows)
