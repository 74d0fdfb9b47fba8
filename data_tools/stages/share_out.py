"""Shares the parts of a set out among the processes that make it, with :mod:`mmldm_scale.common.leases`."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from mmldm_scale.common.leases import Leases

from ..launching.progress import Progress

POLL = 0.5  # seconds between two checks of what other processes have made


def share_out(
    names: Sequence[str], sizes: Sequence[int], made: Callable[[int], bool], leases: Leases, bar: Progress
) -> Iterator[Iterator[int]]:
    """Yield iterators over the numbers of the parts that are ours to make, until all parts are made.

    Each iterator leases a part when it comes to it and skips those that others make; the part's name is to be released
    once it is made. When others make all that is missing, this waits for them; if one of
    them dies, its part is leased again.

    Args:
        names: of the parts, as they are leased.
        sizes: of the parts, in what ``bar`` counts; it is set to what is done at each pass, whoever did it.
        made: whether part i exists and is whole.
    """
    missing = list(range(len(names)))
    while missing := [number for number in missing if not made(number)]:
        bar.set_present(sum(sizes) - sum(sizes[number] for number in missing))
        ours = _ours(names, missing, made, leases)
        first = next(ours, None)
        if first is None:
            time.sleep(POLL)
        else:
            yield chain([first], ours)
    bar.set_present(sum(sizes))


def _ours(names: Sequence[str], missing: list[int], made: Callable[[int], bool], leases: Leases) -> Iterator[int]:
    for number in missing:
        if not leases.take(names[number]):
            continue
        if made(number):  # another process was faster
            leases.release(names[number])
        else:
            yield number
