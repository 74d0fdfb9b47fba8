"""Curves against a number of steps as an SVG picture: ``write(file, panels)``."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 330, 250, 48, 12, 30, 40  # pixels of a panel and of its margins
COLOURS = ("#555555", "#c1440e", "#1f6fb4", "#2f8f4e")
Curves = Mapping[str, Mapping[int, float]]  # by name of the curve and number of steps


def write(file: Path, panels: Mapping[str, tuple[Curves, float]]) -> None:
    """Write ``panels`` side by side: by title, the curves and the value of a grey line across."""
    drawn = [_panel(title, curves, line, i * WIDTH) for i, (title, (curves, line)) in enumerate(panels.items())]
    width = WIDTH * len(panels)
    style = "text{font:12px sans-serif;fill:#222}path{fill:none;stroke-width:1.6}.frame{stroke:#999;stroke-width:1}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}">'
    file.write_text(
        f'{head}<style>{style}</style><rect width="100%" height="100%" fill="white"/>{"".join(drawn)}</svg>\n'
    )


def _panel(title: str, curves: Curves, line: float, left: int) -> str:
    """Return a panel whose left edge is at ``left``; steps are on a logarithmic scale."""
    steps = sorted({number for curve in curves.values() for number in curve})
    values = [line, *(value for curve in curves.values() for value in curve.values())]
    low, high = min(values), max(values)
    low, high = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)

    def x(number: int) -> float:
        share = math.log(number / steps[0]) / math.log(steps[-1] / steps[0])
        return left + LEFT + 8 + share * (WIDTH - LEFT - RIGHT - 16)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    edges = left + LEFT, left + WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    parts = [
        _text((edges[0] + edges[1]) / 2, 16, title, "middle"),
        _text((edges[0] + edges[1]) / 2, HEIGHT - 6, "steps", "middle"),
        f'<path class="frame" d="M{edges[0]} {edges[2]}V{edges[3]}H{edges[1]}"/>',
        f'<path d="M{edges[0]} {y(line):.1f}H{edges[1]}" stroke="#bbb" stroke-dasharray="4 3"/>',
        *(_text(x(number), HEIGHT - BOTTOM + 16, str(number), "middle") for number in steps),
        *(_text(edges[0] - 4, y(value) + 4, f"{value:.3g}", "end") for value in _ticks(low, high)),
    ]
    for i, (name, curve) in enumerate(curves.items()):
        colour, points = COLOURS[i], [(x(number), y(curve[number])) for number in sorted(curve)]
        parts.append(f'<path d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in points)}" stroke="{colour}"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points]
        if left == 0:  # the colours mean the same in all panels
            parts.append(_text(edges[1] - 4, TOP + 14 * (i + 1), name, "end", colour))
    return "".join(parts)


def _ticks(low: float, high: float) -> Sequence[float]:
    """Return a few round values from ``low`` to ``high``."""
    unit = 10 ** math.floor(math.log10((high - low) / 3))
    step = next(unit * factor for factor in (1, 2, 5, 10) if (high - low) / (unit * factor) <= 5)
    first = math.ceil(low / step)
    return [step * number for number in range(first, math.floor(high / step) + 1)]


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="fill:{colour}">{escape(text)}</text>'
