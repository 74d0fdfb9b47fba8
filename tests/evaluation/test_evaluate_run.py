"""``mmldm evaluate-run``: the checkpoints of a run are sampled from and measured, once each."""

import json
import shutil
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmldm_scale import cli
from mmldm_scale.common.leases import Leases
from mmldm_scale.evaluation import evaluate
from mmldm_scale.evaluation.clip_sets import open_clip_set
from mmldm_scale.evaluation.run_evaluation import command, measurement, selection
from mmldm_scale.models import pretrained
from mmldm_scale.runs import evaluations
from mmldm_scale.sampling.lossless import LosslessSet
from tests.support.tiny_models.weights_folders import TinyModel, save_model
from tests.support.toy_evaluation import ToyClips

pytestmark = pytest.mark.usefixtures("toys")

PROTOCOL = {
    "samples": {"count": 5, "exact": False},
    "reference": {"split": "training set"},
    "frames": {"count": 2},
    "batch_size": 2,
    "resamples": 20,
    "floor_repeats": 2,
    "metrics": {"fd": {"title": "FD-toy", "distance": "frechet", "extractor": "toy_frames"}},
}
TOTAL = 300  # samples of the run


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> TinyModel:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def reference(monkeypatch) -> ToyClips:
    clips = ToyClips("real", 20)

    def opened(path: str) -> object:
        return clips if path == "real" else open_clip_set(path)

    monkeypatch.setattr(evaluate, "open_clip_set", opened)
    monkeypatch.setattr(measurement, "open_clip_set", opened)
    return clips


@pytest.fixture
def run(tmp_path, model) -> Path:
    """What a DiT's training leaves that was stopped at 200 of 300 samples: two checkpoints."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(f"trainable: dit\ntraining: {{total_samples: {TOTAL}}}\n")
    for samples in (100, 200):
        save(folder, model, samples)
    log(folder, 200)
    return folder


def log(run: Path, samples: int) -> None:
    record = {"samples_seen": samples, "time": time.time(), "speed/progress": samples / TOTAL}
    (run / "log.jsonl").write_text(json.dumps(record) + "\n")


def save(run: Path, model: TinyModel, samples: int) -> Path:
    """Write the checkpoint at ``samples``, of weights of its own, into ``run``."""
    checkpoint = run / f"checkpoints/step-{samples:012d}"
    state = {name: value * (1 + samples / 1000) for name, value in load_file(model.dit / "model.safetensors").items()}
    pretrained.save(checkpoint / "weights", "dit", pretrained.read_config(model.dit, "dit"), state)
    return checkpoint


def call(run: Path, *more: object) -> int:
    protocol = run.parent / "trial.yaml"
    protocol.write_text(yaml.safe_dump(PROTOCOL))
    fast = ["sampling.steps=2", "sampling.decoding.steps=2", "sampling.batch_size=4"]
    words = ["evaluate-run", run, "--reference", "real", "--protocol", protocol, "--device", "cpu"]
    return cli.main([str(word) for word in [*words, *more, *fast, f"weights.toy_frames={Path(__file__)}"]])


def series(run: Path) -> Path:
    (folder,) = (run / "evaluation").glob("trial-*")
    return folder


def test_each_checkpoint_is_measured_once_unless_it_is_saved_anew(run, model, reference, capsys):
    assert call(run) == 0
    first, second = evaluations.read(run)
    assert (first["samples_seen"], second["samples_seen"]) == (100, 200)
    assert first["figures"]["fd"]["value"] != second["figures"]["fd"]["value"]
    assert (first["samples"], first["reference"], first["not_protocol"]) == (5, 5, "")
    report = json.loads((series(run) / "step-000000000100/report.json").read_text())
    assert first["figures"]["fd"]["value"] == report["figures"]["fd"]["value"]
    assert [first["figures"]["fd"][end] for end in ("low", "high")] == report["figures"]["fd"]["interval"]
    left = {path.name for path in (series(run) / "step-000000000200").iterdir()}
    assert left == {"report.json", "report.md", "report.html"}
    events = EventAccumulator(str(series(run) / "tensorboard"), size_guidance={"scalars": 0})
    for tag, part in (("trial.yaml/fd", "value"), ("trial.yaml/fd/high", "high")):
        points = [(point.step, point.value) for point in events.Reload().Scalars(tag)]
        assert points == [(r["samples_seen"], pytest.approx(r["figures"]["fd"][part])) for r in (first, second)]
    assert len(reference.reads) == 5  # its features are made once
    assert not list(run.rglob("leases"))

    content = (run / "evaluation.jsonl").read_bytes()
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurement.Measurement, "measure", None)
        assert call(run) == 0
    assert "2 checkpoints evaluated under protocol trial.yaml; figures are in" in capsys.readouterr().out
    assert (run / "evaluation.jsonl").read_bytes() == content

    assert cli.main(["status", str(run)]) == 0
    part = second["figures"]["fd"]
    row = (
        f"FD-toy {part['value']:.4g} ({part['low']:.4g} to {part['high']:.4g}) at 200 samples seen; protocol trial.yaml"
    )
    assert f"  evaluation   {row}; 2 checkpoints evaluated\n" in capsys.readouterr().out

    shutil.rmtree(run / "checkpoints/step-000000000200")
    save(run, model, 300).rename(run / "checkpoints/step-000000000200")
    assert call(run) == 0
    third = evaluations.read(run)[2]
    assert third["samples_seen"] == 200
    assert third["figures"] != second["figures"]
    assert third["settings"] == second["settings"]


def test_few_samples_are_marked_and_samples_are_kept_if_wanted(run, reference):
    assert call(run, "--num-samples", 4, "--every", 200, "--keep-samples") == 0
    (record,) = evaluations.read(run)
    assert (record["samples_seen"], record["samples"], record["reference"]) == (200, 4, 4)
    assert record["not_protocol"] == "not protocol trial.yaml: 4 of 5 samples"
    assert len(open_clip_set(str(series(run) / "step-000000000200/samples/lossless/svg"))) == 4
    assert "not protocol trial.yaml: 4 of 5 samples; 1 checkpoint evaluated" in evaluations.line([record])


def interrupt(patch: pytest.MonkeyPatch, moment: str) -> None:
    """Have the next evaluation end, as by Ctrl-C, at ``moment``."""
    if moment == "sampling":
        write, calls = LosslessSet.write, count(1)

        def interrupted(*arguments: object) -> object:
            if next(calls) == 2:  # of two blocks
                raise KeyboardInterrupt
            return write(*arguments)

        patch.setattr(LosslessSet, "write", interrupted)
    else:

        def cleaned(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(measurement.Measurement, "clean", cleaned)


@pytest.mark.parametrize("moment", ["sampling", "cleaning"])
def test_a_killed_evaluation_is_resumed_even_if_its_checkpoint_is_removed(run, reference, monkeypatch, moment):
    shutil.rmtree(run / "checkpoints/step-000000000100")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, moment)
        assert call(run) == 130
    assert len(evaluations.read(run)) == (moment == "cleaning")
    shutil.rmtree(run / "checkpoints/step-000000000200")
    write, blocks = LosslessSet.write, []

    def recorded(*arguments: object) -> object:
        blocks.append(arguments)
        return write(*arguments)

    monkeypatch.setattr(LosslessSet, "write", recorded)
    assert call(run) == 0
    assert len(blocks) == (moment == "sampling")
    (record,) = evaluations.read(run)
    assert record["samples_seen"] == 200
    left = {path.name for path in (series(run) / "step-000000000200").iterdir()}
    assert left == {"report.json", "report.md", "report.html"}


def test_a_checkpoint_that_is_removed_or_damaged_is_left_out_with_a_line(run, model, reference, capsys, monkeypatch):
    with (save(run, model, 250) / "weights/model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    link = selection._link_files

    def removed(source: Path, target: Path) -> None:
        if "step-000000000100" in str(source):
            (source / "model.safetensors").unlink()
        link(source, target)

    monkeypatch.setattr(selection, "_link_files", removed)
    assert call(run) == 1
    assert [record["samples_seen"] for record in evaluations.read(run)] == [200]
    lines = capsys.readouterr().err.splitlines()
    folder = run / "checkpoints"
    assert f"{folder}/step-000000000100: the training has removed it; it is not evaluated" in lines
    (damaged,) = [line for line in lines if line.startswith(f"{folder}/step-000000000250: is left out: ")]
    assert "is damaged: it differs from its sha256" in damaged
    assert [path.name for path in series(run).glob("step-*")] == ["step-000000000200"]


def test_watching_evaluates_new_checkpoints_until_the_run_is_finished(run, model, reference, capsys, monkeypatch):
    shutil.rmtree(run / "checkpoints/step-000000000100")
    moved = run.rename(run.with_name("later"))
    steps = iter([lambda: moved.rename(run), lambda: (save(run, model, TOTAL), log(run, TOTAL))])
    monkeypatch.setattr(command, "time", SimpleNamespace(sleep=lambda seconds: next(steps)()))
    assert call(run, "--watch") == 0
    assert next(steps, None) is None
    assert [record["samples_seen"] for record in evaluations.read(run)] == [200, TOTAL]
    lines = capsys.readouterr().err.splitlines()
    assert f"{run}: waits for the run to begin" in lines
    assert lines.count(f"{run}: nobody trains it; waits until it is resumed") == 1


def test_two_processes_do_not_evaluate_the_same_checkpoint(run, reference, capsys, monkeypatch):
    def lease(checkpoint: Path, kept: Path) -> None:
        raise AssertionError

    monkeypatch.setattr("mmldm_scale.evaluation.run_evaluation.command.keep_weights", lease)
    monkeypatch.setattr(Leases, "take", lambda self, name: False)
    assert call(run) == 0
    assert "step-000000000100: another process evaluates it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("every", "evaluated", "finished", "chosen"),
    [
        (None, [100], False, [150, 250, 320]),
        (100, [], False, [100, 250, 320]),
        (100, [100], False, [250, 320]),
        (100, [250], False, [100, 320]),
        (200, [], False, [250]),
        (200, [], True, [250, 320]),
        (1000, [320], True, []),
    ],
)
def test_of_each_interval_the_first_checkpoint_is_evaluated_and_the_last_of_a_finished_run(
    every, evaluated, finished, chosen
):
    assert selection.select([100, 150, 250, 320], evaluated, every, finished) == chosen


@pytest.mark.parametrize(
    ("more", "trainable", "message"),
    [
        ([], None, "run: is no run: no config.yaml in it; with --watch, the run may begin later"),
        ([], "autoencoder", "run: trains a autoencoder; must be the run of a dit"),
        (["--num-samples", 3], "dit", "--num-samples 3: must be at least 4"),
        (["--num-samples", 30], "dit", "real: has 20 clips; must have 30, as many as are measured"),
        (["sampling.stepz=3"], "dit", "stepz: unknown key; did you mean 'steps'?"),
        (["--protocol", "paired-audio"], "dit", "--protocol paired-audio: compares each sample with a clip of its own"),
        (["--protocol", "clean"], "dit", "weights.i3d: not given"),
    ],
)
def test_mistakes_are_named_in_one_line_before_anything_is_sampled(run, reference, capsys, more, trainable, message):
    if trainable is None:
        (run / "config.yaml").unlink()
    else:
        (run / "config.yaml").write_text(f"trainable: {trainable}\n")
    assert call(run, *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmldm")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (run / "evaluation").exists()
