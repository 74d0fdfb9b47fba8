"""Charts of a report as inline SVG: bars with intervals and the floor, and boxes of the values of clips."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

import numpy as np
from markupsafe import Markup

from mmldm_scale.evaluation.report.markdown import shown

WIDTH, ROW = 560, 26  # pixels: width of a chart, height of a row
LABEL, MARGIN = 190, 80  # pixels for texts, on the left and on the right
Bar = tuple[str, float, tuple[float, float] | None]  # label, value, interval


def bars(values: Sequence[Bar], floor: float) -> Markup:
    """Return a chart with a bar for each of ``values``, the samples' first, and a line at ``floor``."""
    limits = [0.0, floor, *(value for _, value, _ in values), *(end for *_, ends in values for end in ends or ())]
    scale = _Scale([limit for limit in limits if math.isfinite(limit)])
    parts = []
    for i, (label, value, ends) in enumerate(values):
        middle = ROW * i + ROW // 2
        parts.append(_text(LABEL - 8, middle, label, "end"))
        if not math.isfinite(value):
            continue
        left, right = sorted((scale(0), scale(value)))
        kind = "all" if i else "selected"
        parts.append(f'<rect class="{kind}" x="{left:.1f}" y="{middle - 8}" width="{right - left:.1f}" height="16"/>')
        if ends:
            low, high = scale(ends[0]), scale(ends[1])
            parts.append(
                f'<path class="interval" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 5}v10'
                f'M{high:.1f} {middle - 5}v10"/>'
            )
            right = max(right, high)
        parts.append(_text(right + 6, middle, shown(value), "start"))
    height = ROW * len(values) + 18
    if math.isfinite(floor):
        x = scale(floor)
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 16}"/>')
        parts.append(_text(x, height - 8, f"floor {shown(floor)}", "middle"))
    return _svg(height, parts)


def boxes(sets: Sequence[tuple[str, Sequence[float]]]) -> Markup:
    """Return a chart with a box for each set of values: quartiles, median, and lines to the least and the greatest."""
    finite = [(label, [value for value in values if math.isfinite(value)]) for label, values in sets]
    finite = [(label, values) for label, values in finite if values]
    if not finite:
        return Markup("")
    scale = _Scale([value for _, values in finite for value in values])
    parts = []
    for i, (label, values) in enumerate(finite):
        middle = ROW * i + ROW // 2
        least, low, median, high, most = (scale(x) for x in np.quantile(values, (0, 0.25, 0.5, 0.75, 1)))
        kind = "all" if i else "selected"
        parts.append(_text(LABEL - 8, middle, f"{label} ({len(values):,})", "end"))
        parts.append(f'<path class="interval" d="M{least:.1f} {middle}H{most:.1f}"/>')
        parts.append(
            f'<rect class="{kind}" x="{low:.1f}" y="{middle - 8}" width="{max(1, high - low):.1f}" height="16"/>'
        )
        parts.append(f'<path class="interval" d="M{median:.1f} {middle - 8}v16"/>')
    height = ROW * len(finite) + 18
    parts.append(_text(LABEL, height - 8, shown(scale.low), "start"))
    parts.append(_text(WIDTH - MARGIN, height - 8, shown(scale.high), "end"))
    return _svg(height, parts)


class _Scale:
    """Maps values to horizontal positions."""

    def __init__(self, values: Sequence[float]) -> None:
        self.low, self.high = min(values), max(values)

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return LABEL + (value - self.low) / span * (WIDTH - LABEL - MARGIN)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y + 4}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: int, parts: Sequence[str]) -> Markup:
    return Markup(f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>')
