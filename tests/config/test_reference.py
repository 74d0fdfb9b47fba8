"""docs/reference/ is what the dataclasses say."""

from pathlib import Path

from data_tools.sources.registry import SOURCES
from mmldm_scale.config import reference

FOLDER = Path(__file__).parents[2] / "docs/reference"


def test_the_pages_are_up_to_date() -> None:
    shipped = {file.name: file.read_text() for file in FOLDER.iterdir()}
    assert shipped == reference.pages(), "docs/reference/ is out of date: run `make docs`"


def test_a_row_has_type_default_unit_and_meaning() -> None:
    pages = reference.pages()
    assert (
        "| `training.warmup_samples` | int | `0` | samples | the learning rate rises linearly over this many |"
        in pages["train_dit.md"].splitlines()
    )
    assert "| `training.zero_stage` | `0`, `1`, `2` or `3` | `1` |" in pages["train_dit.md"]
    assert "| `lpips` | str or null | `null` |" in pages["train_kl_vae.md"]
    assert "| `preview.steps` | int | `20` |" in pages["train_autoencoder.md"]  # its own default, not the class's
    assert "| `limits.*.min` | float or null | `null` |" in pages["prepare.md"]


def test_every_table_is_on_one_page_and_in_the_index() -> None:
    pages = reference.pages()
    for section in reference.SECTIONS:
        heading = f"\n## {section.title}\n"
        assert [name for name, text in pages.items() if heading in text] == [f"{section.page}.md"]
        assert f"[{section.title}]({section.page}.md#" in pages["README.md"]


def test_every_kind_of_source_has_a_table() -> None:
    sections = {section.title for section in reference.SECTIONS}
    assert {f"Source {kind}" for kind in SOURCES} <= sections
