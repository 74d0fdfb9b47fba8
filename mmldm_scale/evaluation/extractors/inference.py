"""How extractors run their networks: without gradients, and the same input gives the same digits on a device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def reproducible_inference() -> Iterator[None]:
    """Run the block without gradients, with deterministic convolutions in full float32 precision.

    By default cuDNN chooses the algorithms of convolutions by their speed, and may round their inputs to TF32.
    """
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.inference_mode(), cudnn:
        yield
