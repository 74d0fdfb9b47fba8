"""``mmldm evaluate``: what it computes, shares among jobs, resumes, reports and refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmldm_scale import cli
from mmldm_scale.config import load, presets
from mmldm_scale.config.evaluating import Evaluating
from mmldm_scale.evaluation import evaluate, figures, protocols
from mmldm_scale.evaluation.distances.frechet import frechet_distance
from mmldm_scale.evaluation.extractors import EXTRACTORS, extractor_class
from tests.support.toy_evaluation import ToyClips, ToyFrames

PROTOCOL = {
    "title": "a trial",
    "samples": {"count": 40},
    "reference": {"split": "training set"},
    "frames": {"count": 2},
    "batch_size": 2,
    "resamples": 20,
    "floor_repeats": 3,
    "metrics": {
        "fd": {"title": "FD-toy", "distance": "frechet", "extractor": "toy_frames", "scale": 1000},
        "kd": {"title": "KD-toy", "distance": "polynomial_mmd", "extractor": "toy_frames"},
        "energy": {"distance": "mean", "extractor": "toy_sound", "better": "lower"},
        "some": {"distance": "mean", "extractor": "toy_sound", "column": 1},
    },
    "published": [{"label": "Other", "data": "Sea", "values": {"fd": 5.5}, "source": "its Table 1"}],
}


pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def sets(monkeypatch) -> dict[str, ToyClips]:
    """The sets that paths lead to."""
    found = {
        "samples": ToyClips("samples", 50, shift=10),
        "real": ToyClips("real", 100),
        "few": ToyClips("few", 12),
        "short": ToyClips("short", 50, seconds=0.01),
    }
    monkeypatch.setattr(evaluate, "open_clip_set", lambda path: found[path])
    return found


@pytest.fixture
def protocol(tmp_path) -> Path:
    return write(tmp_path / "trial.yaml", PROTOCOL)


def write(file: Path, content: dict, **changes: object) -> Path:
    file.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))
    return file


def run(protocol: Path | str, output: Path, *more: object, samples: str = "samples", reference: str = "real") -> int:
    words = ["--samples", samples, "--reference", reference, "--protocol", protocol, "--output", output]
    weights = [f"weights.toy_frames={Path(__file__)}"]
    return cli.main([str(word) for word in ["evaluate", *words, "--device", "cpu", *more, *weights]])


def report(output: Path) -> dict:
    return json.loads((output / "report.json").read_text())


def spread(clips: ToyClips, count: int) -> np.ndarray:
    """The features of ToyFrames, two frames each, of clips spread evenly over the set."""
    chosen = [clips.read(i * len(clips) // count) for i in range(count)]
    return np.array([record.clip.frames[:2].astype(np.float32).mean(axis=(0, 1, 2)) / 255 for record in chosen])


def test_figures_are_those_of_the_sets_and_stand_with_what_belongs_to_them(sets, protocol, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(protocol, out) == 0
    content, x, y = report(out), spread(sets["samples"], 40), spread(sets["real"], 40)
    figure = content["figures"]["fd"]
    assert figure["value"] == pytest.approx(1000 * frechet_distance(x, y), rel=1e-3)
    assert figure["interval"][0] < figure["value"] < figure["interval"][1]
    assert 0 < figure["floor"] < figure["samples_at_floor_counts"]
    assert (figure["samples"], figure["reference"], figure["floor_clips"], figure["resamples"]) == (40, 40, 20, 20)
    assert content["figures"]["some"]["value"] == pytest.approx(
        np.mean([n for i in range(40) if (n := i * 50 // 40) % 3])
    )
    assert content["by_clip"]["some"]["clip_0000"] is None
    assert content["request"]["samples"]["fingerprint"] == sets["samples"].fingerprint()
    assert content["request"]["protocol"]["sha256"] == protocols.sha256(protocols.load(str(protocol)))
    assert content["request"]["networks"]["toy_frames {}"]["weights"] == "f" * 64
    assert {"numpy", "torch", "python", "mmldm_scale"} <= content["versions"].keys()
    markdown, page, printed = (out / "report.md").read_text(), (out / "report.html").read_text(), capsys.readouterr()
    for text in (markdown, page):
        for part in ("protocol trial.yaml", "FD-toy", f"{figure['value']:.5g}", f"{figure['floor']:.5g}"):
            assert part in text
        for part in ("its Table 1", "f" * 64, sets["real"].fingerprint(), "training set", "40 of 50 clips"):
            assert part in text
    assert page.count("<svg") == 4 + 2  # bars of each figure, boxes of those with values of clips
    assert "protocol trial.yaml: 40 samples, 40 reference clips (training set)" in printed.out
    assert re.search(r"Other +Sea +5.5 +– +– +– +its Table 1", printed.out)
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert events.Scalars("trial.yaml/fd")[0].value == pytest.approx(figure["value"])
    assert events.Scalars("trial.yaml/fd/floor")[0].value == pytest.approx(figure["floor"])


def test_each_clip_is_read_once_for_all_networks_and_features_of_the_reference_are_kept(sets, protocol, tmp_path):
    kept = f"reference_features={tmp_path / 'kept'}"
    assert run(protocol, tmp_path / "a", kept) == 0
    assert len(sets["samples"].reads) == len(sets["real"].reads) == 40
    assert run(protocol, tmp_path / "b", kept) == 0
    assert (len(sets["samples"].reads), len(sets["real"].reads)) == (80, 40)
    assert report(tmp_path / "a")["figures"] == report(tmp_path / "b")["figures"]


@pytest.mark.parametrize("parts", [2, 7])
def test_any_number_of_parts_gives_the_same_digits(sets, tmp_path, capsys, parts):
    training = write(
        tmp_path / "trial.yaml",
        PROTOCOL,
        metrics={"fd": {**PROTOCOL["metrics"]["fd"], "options": {"mode": "training"}}, **PROTOCOL["metrics"]},
    )
    assert run(training, tmp_path / "one") == 0
    for part in reversed(range(1, parts + 1)):
        assert not (tmp_path / "many/report.json").exists()
        capsys.readouterr()
        assert run(training, tmp_path / "many", "--part", f"{part}/{parts}") == 0
        assert ("blocks of features are made; the job" in capsys.readouterr().out) == (part > 1)
    one, many = report(tmp_path / "one"), report(tmp_path / "many")
    assert one["figures"] == many["figures"]
    assert one["by_clip"] == many["by_clip"]


def test_a_killed_job_is_resumed_where_it_was(sets, protocol, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ToyFrames, "fail_after", 13)
    assert run(protocol, tmp_path / "out") == 130
    assert not (tmp_path / "out/report.json").exists()
    monkeypatch.setattr(ToyFrames, "fail_after", None)
    assert run(protocol, tmp_path / "out") == 0
    assert len(sets["samples"].reads) == 13 * 2 + 2 + 14  # 13 blocks, the one that is lost, that one and the others
    assert run(protocol, tmp_path / "whole") == 0
    assert report(tmp_path / "out")["figures"] == report(tmp_path / "whole")["figures"]
    assert not list((tmp_path / "out").rglob("leases"))


def test_a_report_is_not_computed_twice_and_not_overwritten_by_another(sets, protocol, tmp_path, capsys, monkeypatch):
    assert run(protocol, tmp_path / "out") == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(evaluate, "_figures", None)
    assert run(protocol, tmp_path / "out") == 0
    assert capsys.readouterr().out == first
    assert run(protocol, tmp_path / "out", samples="real") == 2
    assert "is of another evaluation (not_protocol, samples); choose another --output" in capsys.readouterr().err


def test_samples_against_themselves(sets, protocol, tmp_path):
    assert run(protocol, tmp_path / "out", samples="real") == 0
    figures = report(tmp_path / "out")["figures"]
    assert figures["fd"]["value"] < 1e-6 < figures["fd"]["floor"]


def test_a_trial_with_fewer_samples_is_marked_as_not_of_the_protocol(sets, protocol, tmp_path, capsys):
    assert run(protocol, tmp_path / "out", "--num-samples", 12, samples="few") == 0
    marked = "not protocol trial.yaml: 12 of 40 samples"
    assert report(tmp_path / "out")["request"]["not_protocol"] == marked
    printed = capsys.readouterr().out
    for text in (printed, (tmp_path / "out/report.md").read_text(), (tmp_path / "out/report.html").read_text()):
        assert marked in text
        assert "its Table 1" not in text  # nothing published stands beside it


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"samples": "few"}, "few: has 12 samples; protocol trial.yaml needs 40. Make more, or"),
        ({}, {"reference": "few"}, "few: has 12 clips; protocol trial.yaml needs 40 of the training set"),
        ({"sound": {"seconds": 0.1}}, {"samples": "short"}, "short: clip_0000: has 0.01 s of sound; the protocol"),
        ({"frames": {"count": 5}}, {}, "samples: clip_0000: has 4 frames; the protocol needs 5"),
        ({"metrics": {"fd": {"distance": "frechet", "extractor": "i4d"}}}, {}, "metrics.fd.extractor: i4d: must be"),
        (
            {"metrics": {"fd": {"distance": "frechet", "extractor": "toy_frames", "options": {"size": 3}}}},
            {},
            "metrics.fd.options.size: options of toy_frames are mode",
        ),
        (
            {"metrics": {"is": {"distance": "inception_score", "extractor": "toy_sound"}}},
            {},
            "metrics.is: inception_score needs logits",
        ),
        (
            {"metrics": {"kl": {"distance": "kl_softmax", "extractor": "toy_frames"}}},
            {},
            "metrics.kl.distance: kl_softmax: needs reference.paired: true",
        ),
        (
            {"metrics": {"fd": {"distance": "frechet", "extractor": "toy_sound"}}},
            {},
            "metrics.fd: clip clip_0000: its features are not numbers",
        ),
        ({"framez": 3}, {}, "framez: unknown key; did you mean 'frames'?"),
    ],
)
def test_mistakes_are_named_in_one_line(sets, tmp_path, capsys, changes, options, message):
    assert run(write(tmp_path / "trial.yaml", PROTOCOL, published=[], **changes), tmp_path / "out", **options) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmldm")]
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num-samples", 3], "--num-samples 3: must be 4 to 50, the samples in samples"),
        (["--part", "3/2"], "--part 3/2: must be I/N with 1 ≤ I ≤ N"),
        (["weights.tooy=x"], "weights.tooy: no network has this name; this protocol takes weights.toy_frames"),
        (["weihts.toy=x"], "weihts: unknown key; did you mean 'weights'?"),
    ],
)
def test_wrong_options_are_named_before_anything_is_read(sets, protocol, tmp_path, capsys, more, message):
    assert run(protocol, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert sets["samples"].reads == []
    assert not (tmp_path / "out").exists()


def test_weights_are_given_by_path(sets, protocol, tmp_path, capsys):
    words = ["evaluate", "--samples", "samples", "--reference", "real", "--protocol", str(protocol)]
    words += ["--output", str(tmp_path / "out")]
    assert cli.main(words) == 2
    assert (
        "weights.toy_frames: not given; Toy network of frames needs weights.toy_frames=PATH" in capsys.readouterr().err
    )
    assert cli.main([*words, "weights.toy_frames=missing.pt"]) == 2
    assert "weights.toy_frames=missing.pt: no such file or folder" in capsys.readouterr().err


def test_check_reads_one_clip_of_each_set_and_writes_no_features(sets, protocol, tmp_path, capsys):
    assert run(protocol, tmp_path / "out", "--check") == 0
    assert "FD-toy, KD-toy, energy, some of 40 samples, 40 reference clips can be measured" in capsys.readouterr().out
    assert (sets["samples"].reads, sets["real"].reads) == ([0], [0])
    assert list((tmp_path / "out").iterdir()) == []


def test_pairs_are_clips_of_one_name(sets, tmp_path, capsys):
    paired = write(
        tmp_path / "paired.yaml",
        PROTOCOL,
        reference={"split": "true sound", "paired": True},
        metrics={"kl": {"distance": "kl_softmax", "extractor": "toy_frames"}},
        published=[],
    )
    assert run(paired, tmp_path / "out") == 0
    assert sorted(set(sets["real"].reads)) == [i * 50 // 40 for i in range(40)]
    assert len(report(tmp_path / "out")["by_clip"]["kl"]) == 40
    assert run(paired, tmp_path / "other", reference="few") == 2
    assert "few: has no clip for 30 of 40 samples, such as clip_0012" in capsys.readouterr().err


def test_pairs_may_be_asked_for_under_any_protocol(sets, protocol, tmp_path, capsys):
    assert run(protocol, tmp_path / "out", "--paired", "--metrics", "fd") == 0
    assert sorted(sets["real"].reads) == [i * 50 // 40 for i in range(40)]  # not spread over its 100 clips
    content = report(tmp_path / "out")
    assert list(content["figures"]) == ["fd"]
    assert content["request"]["protocol"]["sha256"] == protocols.sha256(protocols.load(str(protocol)))
    assert content["request"]["reference"]["split"] == "the clip of each sample's name"
    marked = "protocol trial.yaml, but for the reference; each sample is compared with the clip of its name"
    assert content["request"]["not_protocol"] == marked
    assert "its Table 1" not in capsys.readouterr().out
    assert run(protocol, tmp_path / "fx", "--metrics", "fd,fx") == 2
    assert "--metrics fx: must be of fd, kd, energy, some" in capsys.readouterr().err


def test_copies_among_samples_are_refused_where_the_protocol_says_so(sets, tmp_path, capsys, monkeypatch):
    strict = write(tmp_path / "strict.yaml", PROTOCOL, samples={"count": 40, "repeats": False})
    assert run(strict, tmp_path / "out") == 0
    original = ToyClips.read
    monkeypatch.setattr(ToyClips, "read", lambda self, index: original(self, index // 2))
    monkeypatch.setattr(ToyClips, "fingerprint", lambda self: "a" * 63 + str(len(self.path)))
    assert run(strict, tmp_path / "copies") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "mmldm: samples: 15 samples are the same as others to all networks, such as clip_0001 as clip_0000; "
        "protocol strict.yaml allows no copies"
    )


def test_samples_alone_of_lossy_codecs_are_said(sets, protocol, tmp_path, monkeypatch):
    monkeypatch.setattr(sets["samples"], "kind", "videos")
    assert run(protocol, tmp_path / "out") == 0
    said = report(tmp_path / "out")["request"]["not_protocol"]
    assert said == "only the samples are videos of lossy codecs, which is part of each distance"
    monkeypatch.setattr(sets["real"], "kind", "videos")
    assert run(protocol, tmp_path / "both") == 0
    assert report(tmp_path / "both")["request"]["not_protocol"] == ""


def test_published_rows_do_not_stand_beside_other_choices(sets, tmp_path, capsys):
    shipped = yaml.safe_load((Path(protocols.FOLDER) / "mmdiffusion.yaml").read_text())
    same, other = (tmp_path / name for name in ("same.yaml", "other.yaml"))
    same.write_text(yaml.safe_dump(shipped | {"title": "as it is"}))
    other.write_text(yaml.safe_dump(shipped | {"batch_size": 4}))
    assert protocols.load(str(same)).published
    assert run(other, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"{other}: published: " in error
    assert "were measured under protocol mmdiffusion, whose choices are other than this file's; remove" in error


def test_samples_that_are_alike_to_one_network_alone_are_no_copies():
    frames, sound = np.array([[1.0, 2], [1, 2], [3, 4]]), np.array([[0.0], [1], [1]])
    assert figures.copies(frames) == [(0, 1)]
    assert figures.copies(np.concatenate([frames, sound], axis=1)) == []


SHIPPED = (
    *("clean", "cmmd", "javisdit", "mmdiffusion", "mmdiffusion-256", "mmdiffusion-before-2024-06"),
    *("packaged", "paired-audio", "synthetic"),
)


def test_shipped_protocols_pin_what_they_say(capsys):
    assert set(SHIPPED) <= set(protocols.names())
    table1 = protocols.load("mmdiffusion")
    assert (table1.samples.count, table1.samples.exact, table1.reference.split) == (2048, True, "training set")
    assert table1.metrics["fad"].scale == 10 * protocols.load("mmdiffusion-before-2024-06").metrics["fad"].scale == 1e4
    assert cli.main(["evaluate", "--protocol", "mm-diffusion"]) == 2
    refusal = capsys.readouterr().err
    assert "--protocol mm-diffusion: must be one of " in refusal
    assert all(name in refusal for name in SHIPPED)


@pytest.mark.parametrize("name", sorted(set(protocols.names()) - {"packaged", "alignment", "synthetic"}))
def test_networks_and_options_of_shipped_protocols_exist_and_their_weights_are_asked_for(name, capsys):
    assert cli.main(["evaluate", "--protocol", name, "--check-weights"]) == 2
    printed = capsys.readouterr().out
    for metric in protocols.load(name).metrics.values():
        setting = extractor_class(metric.extractor).weights
        assert f"{metric.extractor}: weights.{setting}: not given; " in printed


def test_check_weights_compares_a_file_with_the_published_ones(tmp_path, capsys):
    (tmp_path / "i3d.pt").write_bytes(b"another network")
    words = ["evaluate", "--protocol", "mmdiffusion", "--check-weights", f"weights.i3d={tmp_path / 'i3d.pt'}"]
    assert cli.main([*words, f"weights.audioclip={tmp_path / 'i3d.pt'}"]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"i3d: \S+i3d.pt: 15 bytes, sha256 [0-9a-f]{64}\n  is no published file that is known", printed)
    assert "published: AudioCLIP-Full-Training.pt, sha256 2441d35b" in printed


def test_the_preset_of_weights_names_those_of_all_networks():
    settings = load(Evaluating, [presets.path("evaluate/weights")])
    assert set(settings.weights) <= set(EXTRACTORS)
    for name in SHIPPED:
        needed = {extractor_class(metric.extractor).weights for metric in protocols.load(name).metrics.values()}
        assert needed - {""} <= set(settings.weights)


def test_a_damaged_file_of_features_is_named(sets, protocol, tmp_path, capsys):
    assert run(protocol, tmp_path / "out") == 0
    (tmp_path / "out/report.json").unlink()
    file = sorted((tmp_path / "out/features").rglob("block-000003.safetensors"))[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    assert run(protocol, tmp_path / "out") == 2
    assert f"{file}: cannot be read as features" in capsys.readouterr().err
    file.unlink()
    assert run(protocol, tmp_path / "out") == 0
    assert file.read_bytes() == whole
