"""The report of a selection as one HTML page that needs nothing else: tables, and histograms drawn as SVG."""

from collections.abc import Iterable
from html import escape
from typing import Any

from ..filters.selection_report import Histogram, SelectionReport
from ..filters.table import MEASURES

WIDTH, HEIGHT = 320, 110  # of a histogram's plot, in its own units
LABELS_SHOWN = 1000  # the most frequent; report.json has all

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2530; --dim: #667385; --line: #d5dbe3; --paper: #fff; --all: #b9c6d8;
  --kept: #2a6fc9; --limit: #c0392b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9f0; --dim: #93a1b5; --line: #333d4b; --paper: #151a21;
  --all: #465468; --kept: #62a3f5; --limit: #ff7b6b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 76rem; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .9rem .2rem 0; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr { border-bottom: 1px solid var(--line); }
th, .dim, text { color: var(--dim); fill: var(--dim); font-weight: normal; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1.4rem; }
figure { margin: 0; } figcaption b { font-weight: 600; } svg { width: 100%; height: auto; } text { font-size: 11px; }
.all { fill: var(--all); } .kept { fill: var(--kept); } .limit { stroke: var(--limit); stroke-width: 1.5;
  stroke-dasharray: 4 3; } .axis { stroke: var(--line); } .scroll { max-height: 30rem; overflow: auto; }
pre { border: 1px solid var(--line); padding: .8rem; overflow: auto; }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .35em 0 1em; }
"""


def page(report: SelectionReport) -> str:
    """Return the whole page."""
    limits = report.selection["limits"]
    outside = [(name, *(count[kind] for kind in ("low", "high", "no"))) for name, count in report.outside.items()]
    labels = [(name, *count.values()) for name, count in list(report.labels.items())[:LABELS_SHOWN]]
    reasons = [(name, count, _percent(count, report.rows)) for name, count in report.reasons.items()]
    charts = "".join(_figure(name, histogram, limits.get(name)) for name, histogram in report.histograms.items())
    return "\n".join(
        [
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width"><title>Selection</title>',
            f"<style>{_STYLE}</style>",
            f"<h1>{report.train:,} to train on, {report.heldout:,} held out, of {report.rows:,} candidates</h1>",
            f'<p class="dim">Measures: {escape(report.measures)}</p>',
            "<h2>Dropped</h2>",
            _table(("reason", "candidates", "of all"), [*reasons, ("together", report.dropped, "")]),
            "<h2>Limits</h2><p class=dim>Faultless candidates outside each limit, whatever dropped them first.</p>",
            _table(("measure", "below", "above", "not measured"), outside),
            '<h2>Measures</h2><p><span class="key" style="background:var(--all)"></span>all candidates'
            '<span class="key" style="background:var(--kept)"></span>selected, each to its own scale'
            '<span class="key" style="background:var(--limit)"></span>limits</p>',
            f'<div class="grid">{charts}</div>',
            f"<h2>Labels</h2><p class=dim>{len(report.labels):,} labels; a candidate counts for each of its own.</p>",
            f'<div class="scroll">{_table(("label", "candidates", "train", "held out"), labels)}</div>',
            f"<h2>Configuration</h2><pre>{escape(_outline(report.selection))}</pre></html>",
        ]
    )


def _table(head: Iterable[str], rows: Iterable[tuple[Any, ...]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _figure(name: str, histogram: Histogram, limits: dict[str, float | None] | None) -> str:
    measure = MEASURES.get(name)
    unit, meaning = (measure.unit, measure.meaning) if measure else ("", "")
    missing = f"; {histogram.missing:,} without" if histogram.missing else ""
    about = f"{f'({unit}) ' if unit else ''}{meaning}"
    caption = f'<b>{escape(name)}</b> <span class="dim">{escape(about)}{missing}</span>'
    return f"<figure>{_chart(histogram, limits or {})}<figcaption>{caption}</figcaption></figure>"


def _chart(histogram: Histogram, limits: dict[str, float | None]) -> str:
    """Return the histogram as SVG: bars of all in the back, of the selected before them, limits as dashed lines."""
    low, high = histogram.edges[0], histogram.edges[-1]
    bars = _bars(histogram.measured, "all", 0.0) + _bars(histogram.selected, "kept", 0.25)
    lines = ""
    for bound in limits.values():
        if bound is not None:
            x = WIDTH * (bound - low) / (high - low)
            lines += f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{HEIGHT}"/>'
    ticks = "".join(
        f'<text x="{x}" y="{HEIGHT + 14}" text-anchor="{anchor}">{_tick(value, high - low)}</text>'
        for x, anchor, value in ((0, "start", low), (WIDTH / 2, "middle", (low + high) / 2), (WIDTH, "end", high))
    )
    axis = f'<line class="axis" x1="0" x2="{WIDTH}" y1="{HEIGHT}" y2="{HEIGHT}"/>'
    return f'<svg viewBox="-2 -2 {WIDTH + 4} {HEIGHT + 20}" role="img">{bars}{lines}{axis}{ticks}</svg>'


def _tick(value: float, extent: float) -> str:
    """Return ``value`` with as many digits as an axis of this ``extent`` needs."""
    if abs(value) < extent / 1000:
        return "0"
    return f"{value:,.0f}" if extent >= 100 or abs(value) >= 10_000 else f"{value:.3g}"


def _bars(counts: list[int], kind: str, inset: float) -> str:
    """Return one bar a bin, ``inset`` of a bin narrower on both sides, the highest as high as the plot."""
    step = WIDTH / len(counts)
    found = ""
    for number, count in enumerate(counts):
        if count:
            height = max(1.0, HEIGHT * count / max(counts))
            x, width = (number + inset) * step, (1 - 2 * inset) * step
            found += (
                f'<rect class="{kind}" x="{x:.1f}" y="{HEIGHT - height:.1f}" width="{width:.1f}" '
                f'height="{height:.1f}"><title>{count:,}</title></rect>'
            )
    return found


def _outline(value: dict[str, Any], indent: str = "") -> str:
    """Return ``value`` as indented lines."""
    lines = []
    for key, part in value.items():
        if isinstance(part, dict) and part:
            lines.append(f"{indent}{key}:\n{_outline(part, indent + '  ')}")
        else:
            lines.append(f"{indent}{key}: {part}")
    return "\n".join(lines)
