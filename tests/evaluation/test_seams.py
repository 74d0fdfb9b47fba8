"""``mmldm seams`` on samples whose joints are known: a jump at every joint, or none."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmldm_scale import cli
from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation import seams
from mmldm_scale.evaluation.seams import Curve, compare, spectral_flux
from mmldm_scale.media.encode import write_video


def write_sample(folder: Path, jumps: bool, window: float | None = 0.4) -> None:
    """Write a sample of 2 s: a disc that moves by 1 pixel a frame, and a tone; at joints both jump, if ``jumps``."""
    folder.mkdir()
    time, offset = np.arange(16_000) / 8000, np.arange(20) // 4 * (9 * jumps)
    rows, columns = np.mgrid[:64, :64]
    centres = 10 + np.arange(20) + offset
    disc = [np.hypot(rows - 32, columns - centre) < 9 for centre in centres % 64]
    frames = np.repeat(np.where(np.stack(disc), 220, 30).astype(np.uint8)[..., None], 3, 3)
    pitch = 500 + 400 * jumps * (np.floor(time / 0.4) % 2)
    write_video(folder / "svg_000000.mp4", frames, 10, (0.4 * np.sin(2 * np.pi * pitch * time)).astype("f4"), 8000)
    record = {"task": "svg"} | ({} if window is None else {"seconds": 2.0, "window_seconds": window})
    (folder / "svg_000000.json").write_text(json.dumps(record))


def test_joints_that_jump_stand_out_and_others_do_not(tmp_path, capsys):
    measures = {}
    for name in ("smooth", "jumps"):
        write_sample(tmp_path / name, name == "jumps")
        assert cli.main(["seams", str(tmp_path / name)]) == 0
        report = json.loads((tmp_path / name / "seams.json").read_text())
        assert report["samples"] == ["svg_000000"]
        measures[name] = report["measures"]
        assert Image.open(tmp_path / name / "seams.png").size == (960, 360)
    assert re.search(
        r"spectral flux \(dB\): [\d.]+ at joints, [\d.]+ inside windows, share 0.00", capsys.readouterr().out
    )
    assert list(measures["jumps"])[1] == "spectral flux (dB)"
    for measure, jumps in measures["jumps"].items():
        assert jumps["share"] == 0, measure
        assert jumps["joints"] > 2 * jumps["inside"], measure
        smooth = measures["smooth"][measure]
        assert smooth["joints"] < 1.5 * smooth["inside"] + 0.1, measure


def test_values_across_joints_are_those_at_multiples_of_the_window():
    values = np.zeros(19)  # of 20 frames
    values[[3, 7, 11, 15]] = 5.0
    assert compare([Curve("x", 0.1, values)], 0.4) == {"joints": 5.0, "inside": 0.0, "share": 0.0}
    values[0] = 5.0
    assert compare([Curve("x", 0.1, values)], 0.4)["share"] == 1 / 15


def test_the_flux_of_a_tone_that_becomes_louder_by_6_db():
    tone = 0.1 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
    tone[8000:] *= 2
    flux = spectral_flux(tone, 16_000)
    assert flux.shape == (19,)
    assert np.argmax(flux) == 9
    assert np.delete(flux, 9).max() < 1e-6


def test_a_folder_without_long_samples_is_refused(tmp_path):
    write_sample(tmp_path / "short", False, None)
    arguments = cli.parser().parse_args(["seams", str(tmp_path / "short")])
    with pytest.raises(UserError, match="short: no long sample is there; must be a folder that mmldm sample --seconds"):
        seams.run(arguments)
