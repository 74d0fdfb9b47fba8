import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

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


class Page(HTMLParser):
    """Collects the players' sources, the pictures', the text, and every tag's attributes."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.pictures: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag == "img":
            self.pictures.append(dict(attrs)["src"] or "")
        if tag in ("video", "audio"):
            self.sources.append(dict(attrs)["src"] or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_samples_are_grouped_by_task_with_their_input_beside_them(tmp_path):
    fill(tmp_path, "v2a_000000.mp4", "inputs/v2a_000000.mp4", "svg_000001.mp4", "svg_000000.mp4", "other.mp4")
    fill(tmp_path, "tensorboard/events", "svg.json")
    page = Page(gallery.write(tmp_path, MEDIA))
    assert page.sources == ["svg_000000.mp4", "svg_000001.mp4", "inputs/v2a_000000.mp4", "v2a_000000.mp4"]
    assert "Generated without input svg, 2 samples" in page.text
    assert "Sound to given picture v2a, 1 sample\n" in page.text
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix in (".html", ".tmp")) == ["index.html"]


def test_a_page_depends_on_the_samples_alone_and_nothing_comes_from_elsewhere(tmp_path):
    one, other = tmp_path / "one", tmp_path / '<script>alert("x")<'
    fill(one, "svg_000000.mp4", "a2v_000000.mp4")
    fill(other, "a2v_000000.mp4", "svg_000000.mp4", ".svg_000001.mp4.tmp", "inputs/.svg_000001.mp4.tmp")
    page = Page(gallery.write(other, MEDIA))
    assert (other / "index.html").read_bytes() == gallery.write(one, MEDIA).read_bytes()
    links = [value for name, value in page.attributes if name in ("src", "href")]
    assert links == ["svg_000000.mp4", "a2v_000000.mp4"]
    assert "http" not in (one / "index.html").read_text()


def test_of_jobs_that_end_together_the_last_page_shows_all_samples(tmp_path, monkeypatch):
    fill(tmp_path, "svg_000000.mp4")

    def write_late(page: Path, html: bytes) -> None:
        """Another job ends between the listing and the writing."""
        monkeypatch.undo()
        fill(tmp_path, "svg_000001.mp4")
        gallery.write(tmp_path, MEDIA)
        page.write_bytes(html)

    monkeypatch.setattr(gallery, "write_whole", write_late)
    assert Page(gallery.write(tmp_path, MEDIA)).sources == ["svg_000000.mp4", "svg_000001.mp4"]


def test_a_sample_has_its_settings_its_input_and_the_spectrograms_of_both(tmp_path):
    tone = (0.5 * np.sin(np.arange(MEDIA.audio_samples) / 5)).astype(np.float32)
    write_video(tmp_path / "a2v_000000.mp4", np.zeros((4, 32, 32, 3), np.uint8), 10, tone, 22050)
    (tmp_path / "inputs").mkdir()
    write_wav(tmp_path / "inputs/a2v_000000.wav", tone, 22050)
    (tmp_path / "a2v_000000.json").write_text(json.dumps(RECORD))
    page = Page(gallery.write(tmp_path, MEDIA))
    assert page.sources == ["inputs/a2v_000000.wav", "a2v_000000.mp4"]
    assert page.pictures == ["spectrograms/inputs/a2v_000000.png", "spectrograms/a2v_000000.png"]
    for picture in page.pictures:
        levels = np.asarray(Image.open(tmp_path / picture))
        assert levels.shape == (MEDIA.audio.n_mels, MEDIA.mel_frames)
        assert levels[-1, 0] < levels.max()  # a tone that is not of the lowest band
    assert "input nature/wind.flac" in page.text
    assert "class rain <b>, seed 3" in page.text
    assert "20 steps of dpm++, guidance: audio 2.5, video 1.5, bf16" in page.text
    assert ("preload", "none") in page.attributes
    assert ("loading", "lazy") in page.attributes
    (tmp_path / page.pictures[0]).rename(tmp_path / f"{page.pictures[0]}.0a.tmp")  # as a killed process leaves it
    before = (tmp_path / page.pictures[1]).stat().st_mtime_ns
    gallery.write(tmp_path, MEDIA)
    assert (tmp_path / page.pictures[1]).stat().st_mtime_ns == before
    assert [file.name for file in (tmp_path / "spectrograms/inputs").iterdir()] == ["a2v_000000.png"]


def test_damaged_files_are_shown_without_settings_and_spectrogram(tmp_path):
    fill(tmp_path, "svg_000000.mp4", "svg_000001.mp4")
    (tmp_path / "svg_000000.json").write_text("[1]")
    (tmp_path / "svg_000001.json").write_text('{"guidance": 3}')
    page = Page(gallery.write(tmp_path, MEDIA))
    assert page.sources == ["svg_000000.mp4", "svg_000001.mp4"]
    assert page.pictures == []
    assert "no JSON beside it tells the settings" in page.text


def test_a_page_shows_a_bounded_number_and_says_how_many_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "MOST", 20)
    fill(tmp_path, *(f"svg_{i:06d}.mp4" for i in range(gallery.MOST + 7)))
    page = Page(gallery.write(tmp_path, MEDIA))
    assert len(page.sources) == gallery.MOST
    assert "7 more" in page.text
