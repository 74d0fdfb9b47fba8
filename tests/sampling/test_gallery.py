from html.parser import HTMLParser
from pathlib import Path

from mmldm_scale.sampling import gallery


class Page(HTMLParser):
    """Collects the videos' sources, the text, and every tag's attributes."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag == "video":
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
    page = Page(gallery.write(tmp_path))
    assert page.sources == ["svg_000000.mp4", "svg_000001.mp4", "inputs/v2a_000000.mp4", "v2a_000000.mp4"]
    assert "Generated without input svg, 2 samples" in page.text
    assert "Sound to given picture v2a, 1 sample\n" in page.text
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix in (".html", ".tmp")) == ["index.html"]


def test_a_page_depends_on_the_samples_alone_and_nothing_comes_from_elsewhere(tmp_path):
    one, other = tmp_path / "one", tmp_path / '<script>alert("x")<'
    fill(one, "svg_000000.mp4", "a2v_000000.mp4")
    fill(other, "a2v_000000.mp4", "svg_000000.mp4", ".svg_000001.mp4.tmp", "inputs/.svg_000001.mp4.tmp")
    page = Page(gallery.write(other))
    assert (other / "index.html").read_bytes() == gallery.write(one).read_bytes()
    links = [value for name, value in page.attributes if name in ("src", "href")]
    assert links == ["svg_000000.mp4", "a2v_000000.mp4"]
    assert "http" not in (one / "index.html").read_text()


def test_of_jobs_that_end_together_the_last_page_shows_all_samples(tmp_path, monkeypatch):
    fill(tmp_path, "svg_000000.mp4")

    def write_late(page: Path, html: bytes) -> None:
        """Another job ends between the listing and the writing."""
        monkeypatch.undo()
        fill(tmp_path, "svg_000001.mp4")
        gallery.write(tmp_path)
        page.write_bytes(html)

    monkeypatch.setattr(gallery, "write_whole", write_late)
    assert Page(gallery.write(tmp_path)).sources == ["svg_000000.mp4", "svg_000001.mp4"]


def test_a_page_shows_a_bounded_number_and_says_how_many_there_are(tmp_path):
    fill(tmp_path, *(f"svg_{i:06d}.mp4" for i in range(gallery.MOST + 7)))
    page = Page(gallery.write(tmp_path))
    assert len(page.sources) == gallery.MOST
    assert "7 more" in page.text
