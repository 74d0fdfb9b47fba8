"""Counter-based random generators: every random number of a run is a function of what it is for.

A generator is keyed by (seed, stream, position), so the noise of sample 1,000,003 is the same whichever rank, loader
worker or restart draws it. Draw from it in a fixed order, use it up, and never share it between positions.
"""

import hashlib
from collections.abc import Sequence

import numpy as np


def generator(seed: int, stream: str, position: int = 0) -> np.random.Generator:
    """Return the generator for one purpose (``stream``) at one global ``position``.

    The Philox key is derived from (seed, stream) and its counter starts at ``position`` in the upper half, which
    leaves 2**128 draws to each position before two of them could overlap.
    """
    digest = hashlib.blake2b(f"{seed}:{stream}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype=np.uint64)
    counter = np.array([0, 0, position, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def standard_normal(seed: int, stream: str, positions: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """Return standard normal noise (B, *shape) float32, that of each of B ``positions`` its own."""
    draws = [generator(seed, stream, position).standard_normal(shape, dtype=np.float32) for position in positions]
    return np.stack(draws)
