"""The order in which training sees a set: a fresh permutation each epoch, a pure function of seed and position.

``Order(len(shards), seed)(position)`` is the index of the sample at global ``position``; a run that resumes needs no
other state than that integer, and ranks and loader workers need not talk to each other.
"""

import numpy as np

from mmldm_scale.counter import generator


class Order:
    """Maps a global position (0, 1, 2, … without end) to a sample's index in ``range(samples)``."""

    def __init__(self, samples: int, seed: int) -> None:
        if samples < 1:
            raise ValueError(f"{samples} samples have no order")
        self.samples = samples
        self.seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, np.int64)  # of the epoch asked for last

    def __call__(self, position: int) -> int:
        """Return the index of the sample at ``position``; each epoch of ``samples`` positions visits each once."""
        epoch, place = divmod(position, self.samples)
        if epoch != self._epoch:
            self._permutation = generator(self.seed, "order", epoch).permutation(self.samples)
            self._epoch = epoch
        return int(self._permutation[place])
