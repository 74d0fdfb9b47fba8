"""docs/extend*.md are followed: their files are a package outside of this one, used through the registries' doors."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.datasets.clip_sets import write_clips
from tests.support.run_results import Forks

ROOT = Path(__file__).parents[2]
PAGES = "".join(page.read_text() for page in sorted((ROOT / "docs").glob("extend*.md")))
FILES = dict(re.findall(r"^`(my_extension/\w+\.py)`:\n\n```python\n(.*?)^```$", PAGES, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the package, which can be imported in this process as well."""
    folder = tmp_path_factory.mktemp("extension")
    (folder / "my_extension").mkdir()
    (folder / "my_extension/__init__.py").touch()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def test_the_pages_hold_a_file_of_each_kind() -> None:
    names = {Path(name).stem for name in FILES}
    assert names == {"loudness", "prefixed", "frame_error", "midpoint", "csv_tracker", "__main__"}


def mmldm(extension: Path, *arguments: str) -> str:
    """Run ``mmldm`` with the package's parts; return what it printed. It has to succeed."""
    environment = {**os.environ, "PYTHONPATH": f"{extension}:{ROOT}", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "my_extension", *arguments],
        cwd=extension,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_trainable_trains_resumes_and_says_what_it_is(extension: Path, forks: Forks) -> None:
    def forked(*arguments: str) -> str:  # as mmldm(), in a process that has imported torch
        status, printed = forks(1, "module", str(extension), "my_extension", *arguments)
        assert status == 0, printed
        return printed

    write_clips(extension / "clips", 8)
    intervals = [f"training.{name}=8" for name in ("global_batch", "micro_batch", "log_every", "preview_every")]
    settings = ["shards=clips", "run=run", "training.checkpoint_every=16", "training.precision=fp32", *intervals]
    loader = ["training.workers=0", "training.learning_rate=0.01"]
    mmldm(extension, "train", "loudness", *settings, *loader, "training.total_samples=32")
    printed = forked("train", "loudness", *settings, *loader, "training.total_samples=64")
    assert "resuming from 32 of 64 samples" in printed
    records = [json.loads(line) for line in (extension / "run/log.jsonl").read_text().splitlines()]
    assert records[-1]["term/error"] < records[0]["term/error"]
    assert (extension / "run/config.yaml").read_text().startswith("trainable: loudness\n")
    assert (extension / "run/checkpoints/step-000000000064/weights/config.json").exists()
    assert "loudness" in forked("status", "run")
    assert "csv: sent 8 records and 0 media of run" in forked("follow", "run", "--to", "csv", "--once")
    (table,) = extension.glob("mmldm-*.csv")
    assert [int(line.split(",")[0]) for line in table.read_text().splitlines()] == list(range(8, 65, 8))


def test_the_trainables_outline_is_a_step_that_the_planner_can_take(extension: Path) -> None:
    from my_extension import loudness

    from mmldm_scale.config import load
    from mmldm_scale.planning.memory import activations

    outline = loudness.outline(load(loudness.LoudnessTraining, [], ["shards=x"]))
    assert outline.batch["colour"].shape == (16, 3)
    assert activations(outline) > 0


def test_the_source_labels_videos_by_the_prefix_of_their_name(extension: Path, tmp_path: Path) -> None:
    from my_extension.prefixed import KIND

    from data_tools.sources import open_source, read_options, register
    from data_tools.sources.registry import SOURCES

    register(KIND)
    try:
        for name in ("rain-1.mp4", "rain-2.mp4", "wind-1.mp4", "notes.txt"):
            (tmp_path / name).write_bytes(b"content")
        videos = open_source(read_options({"kind": "prefixed"}), tmp_path).videos()
        assert [(video.path, video.labels) for video in videos] == [
            ("rain-1.mp4", ("rain",)),
            ("rain-2.mp4", ("rain",)),
            ("wind-1.mp4", ("wind",)),
        ]
    finally:
        del SOURCES["prefixed"]


def test_the_metric_is_measured_beside_the_others(extension: Path) -> None:
    from my_extension.frame_error import FrameError

    from mmldm_scale.evaluation.metrics import METRICS

    try:
        assert METRICS["frame_error"] is FrameError
    finally:
        del METRICS["frame_error"]


def test_the_sampler_finds_the_data_of_an_ideal_network(extension: Path) -> None:
    from my_extension import midpoint  # noqa: F401 (it registers itself)

    from mmldm_scale.config import DiffusionConfig
    from mmldm_scale.diffusion.noise_process import noise_process
    from mmldm_scale.diffusion.samplers import SAMPLERS, get_sampler

    try:
        process = noise_process(DiffusionConfig(prediction="flow"))
        sampler = get_sampler("midpoint", process, 50)
        data, noise = torch.full((2, 3), 4.0), torch.randn(2, 3, generator=torch.manual_seed(0))
        found = sampler(lambda latents, time: noise - data, noise, process, 50)
        torch.testing.assert_close(found, data)
    finally:
        del SAMPLERS["midpoint"]


def test_a_term_of_a_loss_takes_the_changes_on_the_page(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "mmldm_scale", tmp_path / "mmldm_scale")
    section = PAGES.partition("\n## A term of a loss\n")[2].partition("\n## ")[0]
    changes = re.findall(r"`(mmldm_scale/[\w/]+\.py)`:\n\n```diff\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert len(changes) == 2
    for name, diff in changes:
        apply_changes(tmp_path / name, diff)
    program = """
import torch
from mmldm_scale.config import load
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.trainable import outline
small = ["shards=x", "model.depth=1", "model.width=16", "model.heads=2", "training.micro_batch=16"]
outputs = []
for weight in (0, 10):
    torch.manual_seed(0)
    step = outline(load(DiTTraining, [], [*small, f"late_weight={weight}"]), device="cpu")
    step.batch["time"] = torch.arange(16) * 1000 // 16
    outputs.append(step.module(step.batch))
without, output = outputs
late = output.metrics["loss/video"] * (torch.arange(16) >= 8)
torch.testing.assert_close(output.terms["late"], late)
torch.testing.assert_close(output.loss, without.loss + 10 * late)
print("as expected")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "as expected\n", done.stderr


def apply_changes(file: Path, diff: str) -> None:
    """Change ``file`` as ``diff`` says, whose every context line has to be in the file exactly once."""
    lines, place = file.read_text().splitlines(), 0
    for change in diff.splitlines():
        if change.startswith("+"):
            lines.insert(place, change[1:])
            place += 1
        elif change != "…":
            assert lines.count(change[1:]) == 1, change
            place = lines.index(change[1:]) + 1
    file.write_text("\n".join(lines) + "\n")
