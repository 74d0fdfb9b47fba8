"""The report of a selection as one HTML page: tables, histograms drawn as SVG, and examples with their pictures."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmldm_scale.common.pages import render

from ..filters.selection_examples import Example, ExampleGroup
from ..filters.selection_report import Histogram, SelectionReport
from ..filters.table import MEASURES
from ..sources.video import Video
from .example_pictures import SECONDS, Picture

WIDTH, HEIGHT = 320, 110  # of a histogram's plot, in units of the SVG
LABELS_SHOWN = 1000  # the most frequent; report.json has all


@dataclass(frozen=True)
class Examples:
    """The candidates that the page shows.

    Attributes:
        groups: which ones, by filter.
        videos, pictures: of the rows that the groups name.
        problem: why there are no pictures at all; "" if there are.
    """

    groups: Sequence[ExampleGroup]
    videos: Mapping[int, Video]
    pictures: Mapping[int, Picture]
    problem: str


@dataclass(frozen=True)
class _Figure:
    """One candidate on the page; ``picture`` is a URL of data, or "" if there is none."""

    name: str
    place: str  # where the stretch begins, and its labels
    note: str
    picture: str
    problem: str


@dataclass(frozen=True)
class _Limit:
    """A limit in a histogram: its place along the x axis, and its label, on the side where there is room."""

    x: float
    anchor: str
    label: str


@dataclass(frozen=True)
class _Bar:
    """A bar of a histogram: its place in the plot, and how many candidates it stands for."""

    kind: str  # "all" or "selected", as in the stylesheet
    count: int
    x: float
    width: float
    height: float


@dataclass(frozen=True)
class _Chart:
    """A histogram as it is drawn; ``limits`` and ``ticks`` are places along the x axis."""

    name: str
    about: str
    bars: list[_Bar]
    limits: list[_Limit]
    ticks: list[tuple[float, str, str]]  # x, anchor, text


def page(report: SelectionReport, examples: Examples) -> str:
    """Return the whole page."""
    limits = report.selection["limits"]
    dropped = [(name, count, _percent(count, report.rows)) for name, count in report.reasons.items()]
    outside = [(name, *(count[kind] for kind in ("low", "high", "no"))) for name, count in report.outside.items()]
    labels = [(name, *count.values()) for name, count in list(report.labels.items())[:LABELS_SHOWN]]
    return render(
        Path(__file__).with_name("selection_page.html"),
        title="Selection",
        report=report,
        dropped=[*dropped, ("together", report.dropped, "")],
        outside=outside,
        charts=[_chart(name, histogram, limits.get(name) or {}) for name, histogram in report.histograms.items()],
        groups=[
            (group.title, [("dropped", _figures(group.dropped, examples)), ("kept", _figures(group.kept, examples))])
            for group in examples.groups
        ],
        problem=examples.problem,
        seconds=SECONDS,
        width=WIDTH,
        height=HEIGHT,
        labels=labels,
        configuration=_outline(report.selection),
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _chart(name: str, histogram: Histogram, limits: dict[str, float | None]) -> _Chart:
    """Return the histogram of the measure ``name``: bars of all behind, of the selected in front, limits as lines."""
    measure = MEASURES.get(name)
    unit = f"({measure.unit}) " if measure and measure.unit else ""
    missing = f"; {histogram.missing:,} without" if histogram.missing else ""
    low, high = histogram.edges[0], histogram.edges[-1]
    ticks = ((0.0, "start", low), (WIDTH / 2, "middle", (low + high) / 2), (float(WIDTH), "end", high))
    return _Chart(
        name=name,
        about=f"{unit}{measure.meaning if measure else ''}{missing}",
        bars=[*_bars(histogram.measured, "all", 0.0), *_bars(histogram.selected, "selected", 0.25)],
        limits=[
            _limit(side, bound, WIDTH * (bound - low) / (high - low))
            for side, bound in limits.items()
            if bound is not None
        ],
        ticks=[(x, anchor, _tick(value, high - low)) for x, anchor, value in ticks],
    )


def _limit(side: str, bound: float, x: float) -> _Limit:
    label = f"{'≥' if side == 'min' else '≤'} {bound:g}"
    return _Limit(x, "start" if x < WIDTH / 2 else "end", label)


def _figures(chosen: Sequence[Example], examples: Examples) -> list[_Figure]:
    figures = []
    for example in chosen:
        video, picture = examples.videos[example.row], examples.pictures[example.row]
        url = f"data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode()}" if picture.jpeg else ""
        place = ", ".join([f"from {video.start:g} s", *video.labels])
        figures.append(_Figure(video.path, place, example.note, url, picture.problem))
    return figures


def _tick(value: float, extent: float) -> str:
    """Return ``value`` with as many digits as an axis of this ``extent`` needs."""
    if abs(value) < extent / 1000:
        return "0"
    return f"{value:,.0f}" if extent >= 100 or abs(value) >= 10_000 else f"{value:.3g}"


def _bars(counts: list[int], kind: str, inset: float) -> list[_Bar]:
    """Return one bar a bin, ``inset`` of a bin narrower on both sides, the highest as high as the plot."""
    step = WIDTH / len(counts)
    return [
        _Bar(kind, count, (number + inset) * step, (1 - 2 * inset) * step, max(1.0, HEIGHT * count / max(counts)))
        for number, count in enumerate(counts)
        if count
    ]


def _outline(value: dict[str, Any], indent: str = "") -> str:
    """Return ``value`` as indented lines."""
    lines = []
    for key, part in value.items():
        if isinstance(part, dict) and part:
            lines.append(f"{indent}{key}:\n{_outline(part, indent + '  ')}")
        else:
            lines.append(f"{indent}{key}: {part}")
    return "\n".join(lines)
