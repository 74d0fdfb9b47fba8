"""How many clips are computed together: measured on a GPU, and halved whenever its memory is used up.

It decides nothing but speed, memory and rounding. A clip is a function of its own noise and conditions, whichever
others are computed beside it.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from tqdm import tqdm

from mmldm_scale.common.errors import UserError

CPU_TOGETHER = 2  # clips; 17 pictures of 256 × 256 each take 5 GB in the KL-VAE's decoder
USED_SHARE = 0.9  # of the free memory; the allocator cannot use all of it

Result = TypeVar("Result")


class Together:
    """The number of clips that are computed together.

    Args:
        count: to begin with, at least 1.
        task: begins the line that says that the number was halved.
    """

    def __init__(self, count: int, task: str) -> None:
        self.count = count
        self._task = task
        self._lock = threading.Lock()

    def compute(
        self, clips: range, needed: Iterable[int], compute: Callable[[range], Result]
    ) -> list[tuple[range, Result]]:
        """Return the results of ``compute`` for parts of ``clips``, each with its part.

        A part has :attr:`count` clips (the last one of ``clips`` may have fewer), and begins a multiple of that after
        the first one. Parts without any of ``needed`` are left out. A part whose computation runs out of memory is
        computed again in halves.

        Raises:
            UserError: the memory is too small for one clip.
        """
        wanted, results, start = set(needed), [], clips.start
        while start < clips.stop:
            part = range(start, min(start + self.count, clips.stop))
            if wanted.isdisjoint(part):
                start = part.stop
                continue
            try:
                results.append((part, compute(part)))
                start = part.stop
                continue
            except torch.OutOfMemoryError:
                pass  # the memory is free only once the error, which holds the frames of the computation, is gone
            self._halve(len(part))
        return results

    def _halve(self, failed: int) -> None:
        """Halve the number after ``failed`` clips were too many, unless the other stage has done so meanwhile."""
        with self._lock:
            if failed == 1 and self.count == 1:
                raise UserError(
                    "the GPU's memory is too small for one clip: decoding.pictures=4 computes fewer pictures together, "
                    "precision=bf16 or fp16 takes half of it"
                )
            if failed <= self.count:
                self.count = max(1, failed // 2)
                clips = "1 clip" if failed == 1 else f"{failed} clips"
                line = f"{self._task}: the GPU's memory is used up by {clips} computed together; it goes on with "
                tqdm.write(f"{line}clips_together={self.count}", file=sys.stderr)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure(stages: Iterable[Callable[[range], object]], most: int, device: torch.device) -> int:
    """Return how many clips, up to ``most``, can be computed together on ``device``; on a CPU :data:`CPU_TOGETHER`.

    The number is doubled as long as twice the memory of the trial before is free.

    Args:
        stages: each computes the clips of a range, with the memory of the real work but in little time. They work at
            the same time later on, so their memory adds up.
    """
    if device.type != "cuda":
        return min(most, CPU_TOGETHER)
    together = 1
    while together < most:
        try:
            taken = sum(_peak(stage, range(together), device) for stage in stages)
        except torch.OutOfMemoryError:  # also of one clip alone: the real work says so
            together = max(1, together // 2)
            break
        if 2 * taken > USED_SHARE * _free(device):
            break
        together = min(2 * together, most)
    torch.cuda.empty_cache()
    return together


def _peak(stage: Callable[[range], object], clips: range, device: torch.device) -> int:
    """Return the bytes that ``stage`` takes at its peak besides what is taken already."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    stage(clips)
    return torch.cuda.max_memory_allocated(device) - before


def _free(device: torch.device) -> int:
    """Return the bytes of the GPU that are free, or reserved by this process without being used."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
