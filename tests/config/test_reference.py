"""docs/reference.md is what the dataclasses say."""

from pathlib import Path

from data_tools.sources.registry import SOURCES
from mmldm_scale.config import reference

PAGE = Path(__file__).parents[2] / "docs/reference.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference.page(), "docs/reference.md is out of date: run `make docs`"


def test_a_row_has_type_default_unit_and_meaning() -> None:
    rows = reference.page().splitlines()
    assert (
        "| `training.warmup_samples` | int | `0` | samples | the learning rate rises linearly over this many |" in rows
    )
    assert "| `training.zero_stage` | `0`, `1`, `2` or `3` | `1` |" in reference.page()
    assert "| `lpips` | str or null | `null` |" in reference.page()
    assert "| `preview.steps` | int | `20` |" in reference.page()  # the autoencoder's own default, not the class's
    assert "| `limits.*.min` | float or null | `null` |" in reference.page()


def test_every_kind_of_source_has_a_table() -> None:
    sections = {section.title for section in reference.SECTIONS}
    assert {f"Source {kind}" for kind in SOURCES} <= sections
