"""The text of a table, made from the content of ``table.json``: Markdown, HTML, and lines for the terminal."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmldm_scale.common.pages import render
from mmldm_scale.evaluation.report.charts import Bar, bars
from mmldm_scale.evaluation.report.markdown import ARROWS, DIGITS, aligned, shown, table

FLOOR = "floor: real clips, half against half"
NOT_COMPARABLE = "Published, but it is not known under which protocol: these do not compare with the figures above"
Content = Mapping[str, Any]


def markdown(content: Content) -> str:
    """Return the table in Markdown."""
    parts = [f"# {content['title']}", content["about"]]
    for section in content["sections"]:
        parts += [f"## {heading(section)}", table(rows(content, section)), _list(facts(content, section))]
    if content["not_comparable"]:
        parts += [f"## {NOT_COMPARABLE}", table(not_comparable(content))]
    return "\n\n".join([*filter(None, parts), _list(content["left_out"])]).strip() + "\n"


def page(content: Content) -> str:
    """Return the table as a page in HTML."""
    return render(
        Path(__file__).with_name("table.html"),
        title=content["title"],
        about=content["about"],
        sections=[
            {
                "title": heading(section),
                "rows": rows(content, section),
                "lines": facts(content, section),
                "charts": list(_charts(content, section)),
            }
            for section in content["sections"]
        ],
        other_title=NOT_COMPARABLE,
        others=not_comparable(content) if content["not_comparable"] else [],
        left_out=content["left_out"],
    )


def terminal(content: Content) -> str:
    """Return the table for the terminal, without what stands behind the figures."""
    lines = [content["title"]]
    for section in content["sections"]:
        lines += [heading(section), *aligned(rows(content, section)), *_remarks(section)]
    if content["not_comparable"]:
        lines += [f"{NOT_COMPARABLE}:", *aligned(not_comparable(content))]
    return "\n".join([*lines, *content["left_out"]])


def heading(section: Content) -> str:
    """Return the title of a part of the table: its protocol, or that the figures are not of it."""
    return str(section["not_protocol"] or f"protocol {section['protocol']['name']}")


def rows(content: Content, section: Content) -> list[list[str]]:
    """Return a part of the table, its heading first: our rows, each with the published one, the floor, the others."""
    columns = section["columns"]
    titles = [f"{content['sets'][column['set']]} {column['title']} {ARROWS[column['direction']]}" for column in columns]
    names = [row["name"] for row in section["rows"]]
    lines = [["", *(["parameters", "linear MACs"] if content["sizes"] else []), *titles, "source"]]
    for row in section["rows"]:
        cells = [_figure(row["values"].get(column["set"], {}).get(column["metric"])) for column in columns]
        lines.append([row["label"], *_sizes(content, row), *cells, "ours"])
        lines += [_published(content, columns, other) for other in section["published"] if other["row"] == row["name"]]
    none = ["", ""] if content["sizes"] else []
    lines.append([FLOOR, *none, *(shown(column["floor"]) for column in columns), "ours"])
    return [*lines, *(_published(content, columns, row) for row in section["published"] if row["row"] not in names)]


def not_comparable(content: Content) -> list[list[str]]:
    """Return a table of the published rows of unknown protocol, its heading first."""
    keys = {
        (data, key): None for row in content["not_comparable"] for data, part in row["values"].items() for key in part
    }
    columns = [{"set": data, "metric": metric} for data, metric in keys]
    titles = [f"{content['sets'][data]} {metric}" for data, metric in keys]
    head = ["", *(["parameters", "linear MACs"] if content["sizes"] else []), *titles, "source"]
    return [head, *(_published(content, columns, row) for row in content["not_comparable"])]


def facts(content: Content, section: Content) -> list[str]:
    """Return in lines what stands behind the figures of a part of the table."""
    protocol = section["protocol"]
    lines = [f"protocol {protocol['name']} ({protocol['title']}): sha256 {protocol['sha256']}"]
    labels = {row["name"]: row["label"] for row in section["rows"]}
    for place, roles in section["sets"].items():
        name, _, data = place.partition("/")
        title = content["sets"][data]
        lines.append(f"{labels[name]}, {title}: {_clips(roles['samples'])}")
        lines.append(f"reference, {title} ({roles['reference']['split']}): {_clips(roles['reference'])}")
    lines = list(dict.fromkeys(lines))  # rows share their reference
    for column in section["columns"]:
        title = f"{content['sets'][column['set']]} {column['title']}"
        floor = f"floor with {column['floor_clips']:,} clips: {column['floor_of']}"
        lines.append(f"{title}: {column['network']}, weights {column['weights'][:DIGITS]}; {floor}")
    if section["columns"]:
        first = section["columns"][0]
        lines.append(f"brackets: the interval of {first['level']:.0%}, from {first['resamples']} resampled sets")
    return [*lines, *sorted({each["note"] for each in section["columns"] if each["note"]}), *_remarks(section)]


def _clips(part: Content) -> str:
    count = f"{part['measured']:,} of {part['clips']:,} clips"
    return f"{count} in {part['path']} ({part['kind']}), fingerprint {part['fingerprint']}"


def _remarks(section: Content) -> list[str]:
    """Return in lines what is not in a part of the table."""
    lines = [f"{title}: not measured, {setting} is not given" for title, setting in section["not_measured"].items()]
    if section["published_elsewhere"]:
        lines.append(
            f"published rows that are not shown, for theirs is another protocol: {section['published_elsewhere']}"
        )
    return lines


def _published(content: Content, columns: list[dict[str, Any]], row: Content) -> list[str]:
    cells = [shown(row["values"].get(column["set"], {}).get(column["metric"])) for column in columns]
    return [row["label"], *_sizes(content, row), *cells, row["source"]]


def _sizes(content: Content, row: Content) -> list[str]:
    return [row["parameters"], row["macs"]] if content["sizes"] else []


def _figure(part: Mapping[str, Any] | None) -> str:
    if part is None:
        return shown(None)
    low, high = part["interval"]
    return f"{shown(part['value'])} [{shown(low)}, {shown(high)}]"


def _list(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _charts(content: Content, section: Content) -> Iterator[dict[str, Any]]:
    """Yield a chart for each column: our rows with intervals, the published ones, and the floor."""
    for column in section["columns"]:
        data, metric = column["set"], column["metric"]
        ours: list[Bar] = [
            (row["label"], _number(part["value"]), (_number(part["interval"][0]), _number(part["interval"][1])))
            for row in section["rows"]
            if (part := row["values"].get(data, {}).get(metric))
        ]
        others: list[Bar] = [
            (f"{row['label']}, paper", value, None)
            for row in section["published"]
            if (value := row["values"].get(data, {}).get(metric)) is not None
        ]
        chart = bars([*ours, *others], _number(column["floor"]), own=len(ours))
        yield {"title": f"{content['sets'][data]} {column['title']} {ARROWS[column['direction']]}", "bars": chart}


def _number(value: float | None) -> float:
    """Return ``value``, a number of ``table.json``, which has null for what is no number."""
    return float("nan") if value is None else value
