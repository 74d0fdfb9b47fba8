"""The values that docs/monitor.md explains."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/monitor.md"


def documented() -> dict[str, re.Pattern[str]]:
    """Return a pattern for each tag in the first column of the page's table of logged values."""
    section = PAGE.read_text().split("## Logged values", 1)[1].split("\n## ", 1)[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    patterns = {}
    for tag in (tag for cell in cells for tag in re.findall(r"`([^`]+)`", cell)):
        text = re.escape(tag).replace("…", ".+")
        text = re.sub(r"\b(?:audio|video)/\d+\\-\d+$", ".+", text)  # `loss_by_time/audio/0-249`, … stands for all
        patterns[tag] = re.compile(re.sub(r"[A-Z]{4,}", "[^/]+", text))  # NAME, PLACE, LENGTH
    return patterns
