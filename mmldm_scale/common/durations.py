"""Spans of time in words: ``duration(5025)`` is "1 h 23 min"."""

import math


def duration(seconds: float) -> str:
    """Return ``seconds`` in its two largest units; "0 s" if it is not finite."""
    whole = max(0, round(seconds)) if math.isfinite(seconds) else 0
    for size, name, smaller, below in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // smaller} {below}"
    return f"{whole} s"
