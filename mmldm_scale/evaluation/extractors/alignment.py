"""Numbers of a clip that need no weights, in the place of features: a protocol takes their mean over clips.

The columns of ``synthetic`` are those of ``VALUES`` in ``evaluation/synthetic/agreement.py``.
"""

import hashlib
import inspect
import math
from abc import abstractmethod
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.extractors.extractor import Extractor
from mmldm_scale.evaluation.metrics import av_align, motion, onset_offset
from mmldm_scale.evaluation.synthetic import agreement, picture, sound


class ClipNumbers(Extractor):
    """Numbers computed from frames and sound of one clip by itself; NaN where a clip has none.

    Attributes:
        modules: whose source decides what the numbers are.
    """

    reads = "both"
    weights = ""
    modules: tuple[ModuleType, ...]

    def __init__(self, path: Path | None, device: torch.device) -> None:
        super().__init__(path, device)
        if path is not None:
            raise UserError(f"{self.name}: takes no weights; got {path}")

    @abstractmethod
    def numbers(self, clip: ClipRecord) -> list[float]:
        """Return the ``dimension`` numbers of ``clip``."""

    def prepare(self, clip: ClipRecord) -> Tensor:
        """Return the numbers of ``clip``, (``dimension``,) float32."""
        return torch.tensor(self.numbers(clip), dtype=torch.float32)

    def features(self, inputs: Tensor) -> Tensor:
        """Return ``inputs``, which are the numbers: (B, ``dimension``)."""
        return inputs

    def fingerprint(self) -> str:
        """Return the sha256, in hex, of the source that computes the numbers."""
        return hashlib.sha256("".join(inspect.getsource(module) for module in self.modules).encode()).hexdigest()


class AVAlign(ClipNumbers):
    """AV-Align, 0 to 1: see ``metrics/av_align.py``."""

    name = "av_align"
    title = "AV-Align"
    dimension = 1
    modules = (av_align, motion)

    def __init__(self, path: Path | None, device: torch.device) -> None:
        super().__init__(path, device)
        motion.require_packages(self.name)

    def numbers(self, clip: ClipRecord) -> list[float]:
        motion.check_clip(clip.name, clip.clip.frames, clip.clip.waveform)
        return [av_align.av_align(clip.clip.frames, clip.frame_rate, clip.clip.waveform, clip.sample_rate)]


class OnsetOffset(ClipNumbers):
    """Size of the lag between motion and onsets, and the lag itself (ms): see ``metrics/onset_offset.py``."""

    name = "onset_offset"
    title = "lag between motion and onsets"
    dimension = 2
    modules = (onset_offset, motion)

    def __init__(self, path: Path | None, device: torch.device) -> None:
        super().__init__(path, device)
        motion.require_packages(self.name)

    def numbers(self, clip: ClipRecord) -> list[float]:
        motion.check_clip(clip.name, clip.clip.frames, clip.clip.waveform)
        lag = onset_offset.onset_lag(clip.clip.frames, clip.frame_rate, clip.clip.waveform, clip.sample_rate)
        return [1000 * onset_offset.FARTHEST if math.isnan(lag) else abs(lag), lag]


class SyntheticHits(ClipNumbers):
    """The numbers of the synthetic benchmark: see ``evaluation/synthetic/``."""

    name = "synthetic"
    title = "hits of the procedural corpus"
    dimension = len(agreement.VALUES)
    modules = (agreement, picture, sound)

    def numbers(self, clip: ClipRecord) -> list[float]:
        return list(agreement.record_agreement(clip).values().values())
