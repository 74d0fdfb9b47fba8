"""What samplers share: the type of what they call, and the even spacing of timesteps.

A sampler is a function ``sample(predict, noise, process, steps) -> latents``:

- ``predict(latents, time)`` returns the prediction of the network for ``latents`` (B, …) at timestep ``time``, shaped
  like them, float32. Guidance, conditions and a given modality are its business: a sampler knows none of them.
- ``noise`` is (B, …) float32, standard normal. Dimensions after the first may be anything: the DiT's audio and video
  latents come as one (B, N), the signal decoder's pictures as (N, c, s, s).
- ``process`` is the noise process that the network was trained with.
- ``steps`` is how many steps to take, from 1 to ``process.length``.
- The result is the clean latents, shaped like ``noise``. The same arguments give the same result: whatever a sampler
  remembers from step to step lives in the call.
"""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

Predict = Callable[[Tensor, int], Tensor]
CLEAN = -1  # the timestep, one before the first, at which no noise is left


def even_intervals(length: int, steps: int) -> list[tuple[int, int]]:
    """Return the timesteps at which each of ``steps`` steps begins and ends, from ``length`` − 1 to ``CLEAN``.

    ``steps`` is from 1 to ``length``. If it does not divide ``length``, ends are rounded to the nearest timestep, so
    that the lengths of two steps differ by 1 at most. ("Trailing" spacing: the noisiest timestep is visited,
    arXiv 2305.08891.)
    """
    ends = [round(length * remaining / steps) - 1 for remaining in range(steps, -1, -1)]
    return list(pairwise(ends))
