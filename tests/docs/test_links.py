"""Every link of a page leads somewhere, every page that the code names exists, and no page is long."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MOST_LINES = 250
WITHOUT_CONTENTS = 100  # a page of more lines begins with a list of its sections
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(r"\bdocs/(?:[\w/]+\.md|\w+/(?![\w.*]))")


def prose(page: Path) -> str:
    """Return the text of ``page`` without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of ``page``."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_broken(page: Path, link: str) -> bool:
    """Return whether a relative ``link`` on ``page`` leads to a file or a heading that does not exist."""
    place, _, anchor = link.partition("#")
    target = page.parent / place if place else page
    return not target.exists() or (anchor != "" and anchor not in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_short_has_its_contents_on_top_and_links_to_what_exists(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert len(lines) <= MOST_LINES
    links = [link for link in LINK.findall(prose(page)) if not re.match(r"\w+:", link)]
    assert [link for link in links if is_broken(page, link)] == []
    if len(lines) > WITHOUT_CONTENTS:
        sections = re.findall(r"^## (.+)$", prose(page), re.MULTILINE)
        top = prose(page).partition("\n## ")[0]
        assert [title for title in sections if f"[{title}](#" not in top] == []


def test_a_link_to_a_missing_page_or_heading_is_broken(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One page\n\n## ZeRO, and `attention`\n\n```\n# no heading\n```\n")
    assert not any(is_broken(page, link) for link in ("page.md", "#one-page", "page.md#zero-and-attention"))
    assert all(is_broken(page, link) for link in ("other.md", "#no-heading", "page.md#two"))


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        links = {(page.parent / link.partition("#")[0]).resolve() for page in new for link in LINK.findall(prose(page))}
        new = {place for place in links if place.suffix == ".md" and place.exists()} - reached
    assert set(PAGES) <= reached


def test_the_pages_that_code_and_scripts_name_exist() -> None:
    folders = ("mmldm_scale", "data_tools", "slurm", "benchmarks", "tests")
    kinds = (".py", ".yaml", ".sh")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in kinds]
    named = {
        (str(file.relative_to(ROOT)), name)
        for file in [*files, ROOT / "Makefile", ROOT / "demo.sh"]
        if file != Path(__file__)
        for name in NAMED.findall(file.read_text())
    }
    assert named
    assert [(file, name) for file, name in sorted(named) if not (ROOT / name).exists()] == []
