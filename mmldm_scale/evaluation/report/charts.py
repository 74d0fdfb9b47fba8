"""Charts of a report as inline SVG: bars with intervals and the floor, boxes and histograms of the values of clips."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

import numpy as np
from markupsafe import Markup

from mmldm_scale.evaluation.report.markdown import shown

WIDTH, ROW = 560, 26  # pixels: width of a chart, height of a row
LABEL, MARGIN = 190, 80  # pixels for texts, on the left and on the right
BINS, HISTOGRAM = 40, 160  # of a histogram: number of bins, height of the highest in pixels
Bar = tuple[str, float, tuple[float, float] | None]  # label, value, interval


def bars(values: Sequence[Bar], floor: float, own: int = 1) -> Markup:
    """Return a chart with a bar for each of ``values``, the first ``own`` of them ours, and a line at ``floor``."""
    limits = [0.0, floor, *(value for _, value, _ in values), *(end for *_, ends in values for end in ends or ())]
    scale = _Scale([limit for limit in limits if math.isfinite(limit)])
    parts = []
    for i, (label, value, ends) in enumerate(values):
        middle = ROW * i + ROW // 2
        parts.append(_text(LABEL - 8, middle, label, "end"))
        if not math.isfinite(value):
            continue
        left, right = sorted((scale(0), scale(value)))
        kind = "selected" if i < own else "all"
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


def histogram(sets: Sequence[tuple[str, np.ndarray]], limit: float, limit_label: str) -> Markup:
    """Return a histogram of the values of two sets, as shares of each; the first set's bars stand before the second's.

    Args:
        sets: name and values (N,) of each set.
        limit: where a vertical line stands.
        limit_label: what is written at that line.
    """
    edges = np.histogram_bin_edges(np.concatenate([values for _, values in sets]), BINS)
    shares = [np.histogram(values, edges)[0] / len(values) for _, values in sets]
    highest = max(share.max() for share in shares)
    left, width = MARGIN, (WIDTH - 2 * MARGIN) / BINS
    parts = []
    for kind, share, inset in (("all", shares[1], 0.0), ("selected", shares[0], 0.25)):
        for i, part in enumerate(share.tolist()):
            height = part / highest * HISTOGRAM
            x, y = left + (i + inset) * width, HISTOGRAM + ROW - height
            if height:
                size = f'width="{width * (1 - 2 * inset):.1f}" height="{height:.1f}"'
                parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" {size}/>')
    place = left + (limit - edges[0]) / (edges[-1] - edges[0]) * BINS * width
    parts.append(f'<line class="limit" x1="{place:.1f}" x2="{place:.1f}" y1="{ROW - 8}" y2="{HISTOGRAM + ROW}"/>')
    parts.append(_text(place, ROW // 2 - 4, limit_label, "middle"))
    parts.append(_text(left, HISTOGRAM + ROW + 12, shown(float(edges[0])), "start"))
    parts.append(_text(WIDTH - MARGIN, HISTOGRAM + ROW + 12, shown(float(edges[-1])), "end"))
    return _svg(HISTOGRAM + 2 * ROW, parts)


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
