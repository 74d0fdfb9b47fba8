import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmldm_scale import cli
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.encode import write_video
from mmldm_scale.media.wav import write_wav
from mmldm_scale.sampling import gallery

MEDIA = MediaConfig(frames=4, fps=10, size=32)
RECORD = {
    "seed": 3,
    "guidance": {"audio": 2.5, "video": 1.5},
    "sampler": "dpm++",
    "steps": 20,
    "precision": "bf16",
    "class": "rain <b>",
    "prompt": None,
    "input": {"name": "wind.flac", "path": "nature/wind.flac"},
}


class Page:
    """What a page's script is given; its pictures and players are tested in test_gallery_browser.py."""

    def __init__(self, file: Path) -> None:
        self.html = file.read_text(encoding="utf-8")
        (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', self.html)
        self.data: dict[str, Any] = json.loads(found)
        self.samples: list[dict[str, Any]] = self.data["samples"]
        self.names = [sample["name"] for sample in self.samples]

    def text(self, number: int) -> str:
        return self.data["texts"][number]


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_samples_are_grouped_by_task_with_their_input_beside_them(tmp_path):
    fill(tmp_path, "v2a_000000.mp4", "inputs/v2a_000000.mp4", "svg_000001.mp4", "svg_000000.mp4", "other.mp4")
    fill(tmp_path, "tensorboard/events", "svg.json")
    page = Page(gallery.write(tmp_path, MEDIA))
    assert page.names == ["svg_000000", "svg_000001", "v2a_000000"]
    assert page.data["tasks"] == [["svg", "Generated without input", 2], ["v2a", "Sound to given picture", 1]]
    assert [sample.get("input", [None])[0] for sample in page.samples] == [None, None, "mp4"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix in (".html", ".tmp")) == ["index.html"]


def test_a_page_depends_on_the_samples_alone_and_nothing_comes_from_elsewhere(tmp_path):
    one, other = tmp_path / "one", tmp_path / '<script>alert("x")<'
    fill(one, "svg_000000.mp4", "a2v_000000.mp4")
    fill(other, "a2v_000000.mp4", "svg_000000.mp4", ".svg_000001.mp4.tmp", "inputs/.svg_000001.mp4.tmp")
    page = gallery.write(other, MEDIA)
    assert page.read_bytes() == gallery.write(one, MEDIA).read_bytes()
    html = page.read_text()
    assert not re.search(r"https?:|<link|\bsrc=|\bhref=|\bon\w+=|innerHTML|eval\(", html)


def test_of_jobs_that_end_together_the_last_page_shows_all_samples(tmp_path, monkeypatch):
    fill(tmp_path, "svg_000000.mp4")

    def write_late(page: Path, html: bytes) -> None:
        """Another job ends between the listing and the writing."""
        monkeypatch.undo()
        fill(tmp_path, "svg_000001.mp4")
        gallery.write(tmp_path, MEDIA)
        page.write_bytes(html)

    monkeypatch.setattr(gallery, "write_whole", write_late)
    assert Page(gallery.write(tmp_path, MEDIA)).names == ["svg_000000", "svg_000001"]


def test_a_sample_has_its_settings_its_input_and_the_spectrograms_of_both(tmp_path):
    tone = (0.5 * np.sin(np.arange(MEDIA.audio_samples) / 5)).astype(np.float32)
    write_video(tmp_path / "a2v_000000.mp4", np.zeros((4, 32, 32, 3), np.uint8), 10, tone, 22050)
    (tmp_path / "inputs").mkdir()
    write_wav(tmp_path / "inputs/a2v_000000.wav", tone, 22050)
    (tmp_path / "a2v_000000.json").write_text(json.dumps(RECORD))
    page = Page(gallery.write(tmp_path, MEDIA))
    (sample,) = page.samples
    ending, pictured, text, run = sample["input"]
    assert (ending, pictured, page.text(text), run) == ("wav", 1, "nature/wind.flac", 0)
    ((ending, pictured, text),) = sample["results"]
    assert (ending, pictured) == ("mp4", 1)
    assert page.text(text) == "seed 3, 20 steps of dpm++, guidance: audio 2.5, video 1.5, bf16"
    assert sample["class"] == "rain <b>"
    assert "<b>" not in page.html.partition("application/json")[2].partition("</script>")[0]
    pictures = [tmp_path / f"spectrograms/{folder}a2v_000000.png" for folder in ("inputs/", "")]
    for picture in pictures:
        levels = np.asarray(Image.open(picture))
        assert levels.shape == (MEDIA.audio.n_mels, MEDIA.mel_frames)
        assert levels[-1, 0] < levels.max()  # a tone that is not of the lowest band
    pictures[0].rename(f"{pictures[0]}.0a.tmp")  # as a killed process leaves it
    before = pictures[1].stat().st_mtime_ns
    gallery.write(tmp_path, MEDIA)
    assert pictures[1].stat().st_mtime_ns == before
    assert [file.name for file in (tmp_path / "spectrograms/inputs").iterdir()] == ["a2v_000000.png"]


def test_the_spectrogram_of_a_long_sample_is_of_its_whole_sound(tmp_path):
    media = MediaConfig(frames=8, fps=10, size=32)
    sound = np.sin(np.arange(24 * media.audio_samples) / 9).astype(np.float32) / 2
    for name, clips in (("svg_000000", 1), ("svg_000001", 3)):
        frames = np.zeros((8 * clips, 32, 32, 3), np.uint8)
        part = sound[: clips * media.audio_samples]
        write_video(tmp_path / f"{name}.mp4", frames, 10, part, media.audio.sample_rate)
    gallery.write(tmp_path, media)
    widths = [Image.open(tmp_path / f"spectrograms/svg_{i:06d}.png").width for i in (0, 1)]
    assert widths[1] == pytest.approx(3 * widths[0], abs=3)


def test_damaged_files_are_shown_without_settings_and_spectrogram(tmp_path):
    fill(tmp_path, "svg_000000.mp4", "svg_000001.mp4")
    (tmp_path / "svg_000000.json").write_text("[1]")
    (tmp_path / "svg_000001.json").write_text('{"guidance": 3}')
    page = Page(gallery.write(tmp_path, MEDIA))
    (one,), (other,) = (sample["results"] for sample in page.samples)
    assert (one[:2], other[:2]) == (["mp4", 0], ["mp4", 0])
    assert page.text(one[2]) == "no JSON beside it tells the settings"
    assert page.text(other[2]) == "seed ?, ? steps of ?, guidance: ?, ?"


def test_a_page_shows_a_bounded_number_and_says_how_many_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "MOST", 20)
    fill(tmp_path, *(f"svg_{i:06d}.mp4" for i in range(gallery.MOST + 7)))
    page = Page(gallery.write(tmp_path, MEDIA))
    assert len(page.samples) == gallery.MOST
    assert page.data["left_out"] == 7
    assert page.data["tasks"][0][2] == gallery.MOST + 7


def test_folders_are_shown_side_by_side_by_the_names_of_their_samples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "runs/one & two", "svg_000000.mp4", "svg_000001.mp4", "a2v_000000.wav")
    fill(tmp_path / "other", "svg_000001.mp4", "a2v_000000.mp4", "inputs/a2v_000000.wav")
    assert cli.main(["gallery", "runs/one & two", "other", "--output", "pages/both.html"]) == 0
    assert capsys.readouterr().out == "pages/both.html shows 3 samples of 2 folders\n"
    page = Page(tmp_path / "pages/both.html")
    assert page.data["runs"] == [["runs/one & two", "../runs/one%20%26%20two/"], ["other", "../other/"]]
    shown = {sample["name"]: [result and result[0] for result in sample["results"]] for sample in page.samples}
    assert shown == {"svg_000000": ["mp4", None], "svg_000001": ["mp4", "mp4"], "a2v_000000": ["wav", "mp4"]}
    assert page.samples[-1]["input"][3] == 1
    assert not (tmp_path / "other/spectrograms").exists()  # the folders are only read


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["empty", "--output", "a.html"], "empty: contains no samples, such as svg_000000.mp4"),
        (["nowhere", "--output", "a.html"], "nowhere: no such folder"),
        (["empty", "--output", "a.mp4"], "--output a.mp4: must be a file that ends in .html"),
    ],
)
def test_what_cannot_be_shown_is_one_line(tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert cli.main(["gallery", *words]) == 2
    assert capsys.readouterr().err == f"mmldm: {says}\n"
