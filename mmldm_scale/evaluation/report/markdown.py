"""The text of a report, made from the content of ``report.json``: Markdown, and a table for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

COLUMNS = ("figure", "value", "interval", "floor", "at the floor's count", "network")
ARROWS = {"higher": "↑", "lower": "↓"}  # which direction is better
DIGITS = 12  # of a fingerprint, shown
Content = Mapping[str, Any]


def heading(content: Content) -> str:
    """Return the title: the protocol, or that the figures are not of it."""
    request = content["request"]
    return str(request["not_protocol"] or f"protocol {request['protocol']['name']}")


def facts(content: Content) -> list[str]:
    """Return in lines what was measured."""
    request, figures = content["request"], list(content["figures"].values())
    protocol = request["protocol"]
    lines = [f"{protocol['title']}. {protocol['about']}".strip(". ") + "." if protocol["title"] else protocol["about"]]
    for role in ("samples", "reference"):
        part = request[role]
        which = f", {part['split']}" if role == "reference" else ""
        count = f"{part['measured']:,} of {part['clips']:,} clips"
        lines.append(f"{role}: {count} in {part['path']} ({part['kind']}{which}), fingerprint {part['fingerprint']}")
    lines.append(f"protocol {protocol['name']}: sha256 {protocol['sha256']}")
    lines += [f"{part['title']}: weights {part['weights']}" for part in request["networks"].values()]
    first = figures[0]
    lines.append(
        f"intervals: {first['level']:.0%} of {first['resamples']} resampled sets, around the value; floors: mean over "
        f"{first['floor_repeats']} ways to halve the reference, {first['floor_clips']:,} clips each; at the floor's "
        "count: as many samples against such a half, to compare with the floor where few clips raise a distance"
    )
    lines += [f"floor of {part['title']}: {part['floor_of']}" for part in figures]
    lines += sorted({part["note"] for part in figures if part["note"]})
    lines.append("versions: " + ", ".join(f"{name} {number}" for name, number in content["versions"].items()))
    return [line for line in lines if line]


def rows(content: Content) -> list[list[str]]:
    """Return the figures as rows of :data:`COLUMNS`."""
    return [
        [
            f"{part['title']} {ARROWS[part['direction']]}",
            shown(part["value"]),
            f"{shown(part['interval'][0])} to {shown(part['interval'][1])}",
            shown(part["floor"]),
            shown(part["samples_at_floor_counts"]),
            f"{part['network']}, {part['weights'][:DIGITS]}",
        ]
        for part in content["figures"].values()
    ]


def published(content: Content) -> list[list[str]]:
    """Return a table of published rows, its heading first, with ours on top; empty if there are none."""
    if not content["published"]:
        return []
    figures = content["figures"]
    ours = ["these samples", "", *(shown(part["value"]) for part in figures.values()), ""]
    others = [
        [row["label"], row["data"], *(shown(row["values"].get(key)) for key in figures), row["source"]]
        for row in content["published"]
    ]
    return [["system", "data", *(part["title"] for part in figures.values()), "source"], ours, *others]


def choices(content: Content) -> str:
    """Return all choices of the protocol as YAML."""
    protocol = {key: value for key, value in content["request"]["protocol"].items() if key not in ("name", "sha256")}
    return str(yaml.safe_dump(protocol, sort_keys=False, allow_unicode=True, width=110))


def text(content: Content) -> str:
    """Return the report in Markdown."""
    parts = [f"# {heading(content)}", table([list(COLUMNS), *rows(content)])]
    if content["published"]:
        parts += ["## Published under this protocol", table(published(content))]
    parts += ["## What was measured", "\n".join(f"- {line}" for line in facts(content))]
    parts += ["## The protocol", f"```yaml\n{choices(content)}```", f"```bash\n{content['command']}\n```"]
    return "\n\n".join(parts) + "\n"


def terminal(content: Content) -> str:
    """Return the figures, published rows and counts for the terminal."""
    request = content["request"]
    counts = f"{request['samples']['measured']:,} samples, {request['reference']['measured']:,} reference clips"
    split = request["reference"]["split"]
    columns = len(COLUMNS) - 1  # the network is in the report
    lines = [f"{heading(content)}: {counts} ({split})"]
    lines += aligned([list(COLUMNS)[:columns], *(row[:columns] for row in rows(content))])
    if content["published"]:
        head, _, *others = published(content)
        lines += ["published under this protocol:", *aligned([head, *others])]
    return "\n".join(lines)


def shown(value: float | None) -> str:
    """Return ``value`` with 5 significant digits; "–" for none."""
    return "–" if value is None else f"{value:.5g}"


def table(lines: Sequence[Sequence[str]]) -> str:
    """Return ``lines``, the heading first, as a table in Markdown."""
    head, *others = (f"| {' | '.join(cell.replace('|', '¦') for cell in line)} |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *others])


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return ``lines`` with their cells in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
