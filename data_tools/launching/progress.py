"""Progress of a long step: a bar in a terminal, a line now and then in a log."""

import sys

from tqdm import tqdm


def progress(total: int | None, text: str, unit: str, done: int = 0) -> tqdm:
    """Return a bar over ``total`` units (None: not known), ``done`` of them finished already; a context manager."""
    interval = 0.2 if sys.stderr.isatty() else 10.0  # seconds
    return tqdm(total=total, initial=done, desc=text, unit=f" {unit}", mininterval=interval, maxinterval=interval)
