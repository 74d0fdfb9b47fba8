"""Counter-based random numbers: ``generator(seed, stream, position)`` returns a generator for one purpose.

Every random number of a run is a function of (seed, stream, position). The noise of sample 1,000,003 is therefore the
same whichever rank, loader worker or restart draws it. Draw from a generator in a fixed order, and do not share one
between positions.
"""

import hashlib
from collections.abc import Sequence

import numpy as np


def generator(seed: int, stream: str, position: int = 0) -> np.random.Generator:
    """Return the generator of ``stream`` (what the numbers are for) at global ``position`` (0, 1, 2, …).

    The Philox key is a hash of (seed, stream). ``position`` is the upper half of Philox's 256-bit counter, so each
    position has 2**128 draws before it could overlap with the next one.
    """
    digest = hashlib.blake2b(f"{seed}:{stream}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype=np.uint64)
    counter = np.array([0, 0, position, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def standard_normal(seed: int, stream: str, positions: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """Return standard normal noise (B, *shape) float32, one row for each of the B ``positions``."""
    rows = [generator(seed, stream, position).standard_normal(shape, dtype=np.float32) for position in positions]
    return np.stack(rows)
