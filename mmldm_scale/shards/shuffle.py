"""Shuffled reading order of a shard set: a two-level shuffle, a pure function of seed and position.

``ShuffledOrder(sizes, seed, window)(position)`` is the index of the sample at global ``position``. In each epoch the
shards are permuted and divided into pools of at most ``window`` shards, and the samples of each pool are permuted
together. Training therefore reads few shards at a time (they stay in the page cache or on the node's own disk), and
consecutive samples come from any of these shards. The position is the only state of a run that resumes, and ranks and
loader workers need no communication.

The default window of 64 shards (``ReadingConfig.window``) makes pools of 16,384 samples at the usual 256 per shard: 43
global batches of 384. Such a pool has 0.7 GB of latents or about 10 GB of clips, which fits the memory of a
training node. A set of up to ``window`` shards is shuffled as a whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmldm_scale.common.rng import generator


@dataclass(frozen=True, eq=False)
class Pool:
    """A part of an epoch in which the samples of a few shards are mixed.

    Attributes:
        first: the global position at which it begins.
        shards: the numbers of its shards.
        indices: (n,) the sample indices at positions first, first + 1, …
    """

    first: int
    shards: tuple[int, ...]
    indices: np.ndarray

    @property
    def end(self) -> int:
        """The position after its last one."""
        return self.first + len(self.indices)


class ShuffledOrder:
    """Maps a global position (0, 1, 2, … without end) to a sample index in ``range(samples)``."""

    def __init__(self, sizes: Sequence[int], seed: int, window: int, stream: str = "order") -> None:
        """Make the order of a set whose shards have ``sizes`` samples.

        Args:
            sizes: number of samples of each shard; 0 is allowed.
            seed: seed of the run.
            window: largest number of shards in a pool.
            stream: name of the random stream; sets read by one run need different names.

        Raises:
            ValueError: there are no samples, or ``window`` is less than 1.
        """
        self.samples = sum(sizes)
        if self.samples < 1 or window < 1:
            raise ValueError(f"cannot order {self.samples} samples with a window of {window}; both must be at least 1")
        self.seed, self.window, self.stream = seed, window, stream
        self._ends = np.cumsum(sizes, dtype=np.int64)  # (shards,) index after each shard's last sample
        self._starts = self._ends - np.asarray(sizes, np.int64)
        self._filled = np.flatnonzero(sizes)  # numbers of the shards that are not empty
        # The epoch and the pool used last are cached.
        self._epoch = -1
        self._groups: list[np.ndarray] = []  # shard numbers of each pool of the cached epoch
        self._pool_ends = np.empty(0, np.int64)  # (pools,) end of each pool, counted from the epoch's beginning
        self._pool = Pool(0, (), np.empty(0, np.int64))

    def __call__(self, position: int) -> int:
        """Return the index of the sample at ``position``; each epoch of ``samples`` positions has each index once."""
        pool = self.pool(position)
        return int(pool.indices[position - pool.first])

    def pool(self, position: int) -> Pool:
        """Return the pool that contains ``position``."""
        if not self._pool.first <= position < self._pool.end:
            self._pool = self._draw(*divmod(position, self.samples))
        return self._pool

    def _draw(self, epoch: int, offset: int) -> Pool:
        """Return the pool that contains position ``offset`` of ``epoch``."""
        if epoch != self._epoch:
            shards = generator(self.seed, f"{self.stream}/shards", epoch).permutation(self._filled)
            # Pools of nearly equal numbers of shards: a short last pool would mix its samples less than the others.
            self._groups = np.array_split(shards, -(-len(shards) // self.window))
            sizes = self._ends - self._starts
            self._pool_ends = np.cumsum([sizes[group].sum() for group in self._groups])
            self._epoch = epoch
        number = int(np.searchsorted(self._pool_ends, offset, side="right"))
        group = self._groups[number]
        samples = np.concatenate([np.arange(self._starts[shard], self._ends[shard]) for shard in group])
        indices = generator(self.seed, f"{self.stream}/pool/{epoch}", number).permutation(samples)
        before = int(self._pool_ends[number - 1]) if number else 0
        return Pool(epoch * self.samples + before, tuple(map(int, group)), indices)
