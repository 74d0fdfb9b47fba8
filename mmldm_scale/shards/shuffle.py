"""The order in which training sees a set: a two-level shuffle, a pure function of seed and position.

Each epoch the shards are permuted and cut into pools of at most ``window`` shards; the samples of a pool are permuted
together. So a stretch of training touches few shards (they stay in the page cache, or on the node's own disk), yet
neighbours in training come from all over the pool. ``Order(sizes, seed, window)(position)`` is the index of the sample
at global ``position``; a run that resumes needs no other state than that integer, and ranks and loader workers need not
talk to each other.

The default window of 64 shards (``ReadingConfig.window``) makes pools of 16,384 samples at the usual 256 a shard: 43
global batches of the paper's 384, each drawn from 64 random shards. Its 0.7 GB of latents or about 10 GB of clips fit
the memory of any node that trains. A set of up to ``window`` shards is shuffled as a whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmldm_scale.common.rng import generator


@dataclass(frozen=True, eq=False)
class Pool:
    """A stretch of an epoch in which the samples of a few shards are mixed.

    Attributes:
        first: the global position at which it begins.
        shards: the numbers of its shards.
        indices: (n,) the indices of the samples at positions first, first + 1, …
    """

    first: int
    shards: tuple[int, ...]
    indices: np.ndarray

    @property
    def end(self) -> int:
        """The position after its last."""
        return self.first + len(self.indices)


class Order:
    """Maps a global position (0, 1, 2, … without end) to a sample's index in ``range(samples)``."""

    def __init__(self, sizes: Sequence[int], seed: int, window: int, stream: str = "order") -> None:
        """Make the order of a set whose shards hold ``sizes`` samples; ``stream`` tells sets of one run apart.

        Raises:
            ValueError: no shard holds a sample, or ``window`` is not positive.
        """
        self.samples = sum(sizes)
        if self.samples < 1 or window < 1:
            raise ValueError(f"{self.samples} samples and a window of {window} shards have no order")
        self.seed, self.window, self.stream = seed, window, stream
        self._ends = np.cumsum(sizes, dtype=np.int64)  # (shards,) index after each shard's last sample
        self._starts = self._ends - np.asarray(sizes, np.int64)
        self._filled = np.flatnonzero(sizes)  # empty shards take no place in a pool
        self._epoch = -1
        self._groups: list[np.ndarray] = []  # of the epoch asked for last: the shards of each pool
        self._pool_ends = np.empty(0, np.int64)  # and each pool's end, counted from the epoch's beginning
        self._pool = Pool(0, (), np.empty(0, np.int64))  # asked for last

    def __call__(self, position: int) -> int:
        """Return the index of the sample at ``position``; each epoch of ``samples`` positions visits each once."""
        pool = self.pool(position)
        return int(pool.indices[position - pool.first])

    def pool(self, position: int) -> Pool:
        """Return the pool that ``position`` lies in."""
        if not self._pool.first <= position < self._pool.end:
            self._pool = self._draw(*divmod(position, self.samples))
        return self._pool

    def _draw(self, epoch: int, place: int) -> Pool:
        if epoch != self._epoch:
            shards = generator(self.seed, f"{self.stream}/shards", epoch).permutation(self._filled)
            # Pools of nearly the same number of shards: a short last one would mix its samples less than the others.
            self._groups = np.array_split(shards, -(-len(shards) // self.window))
            sizes = self._ends - self._starts
            self._pool_ends = np.cumsum([sizes[group].sum() for group in self._groups])
            self._epoch = epoch
        number = int(np.searchsorted(self._pool_ends, place, side="right"))
        group = self._groups[number]
        samples = np.concatenate([np.arange(self._starts[shard], self._ends[shard]) for shard in group])
        indices = generator(self.seed, f"{self.stream}/pool/{epoch}", number).permutation(samples)
        before = int(self._pool_ends[number - 1]) if number else 0
        return Pool(epoch * self.samples + before, tuple(map(int, group)), indices)
