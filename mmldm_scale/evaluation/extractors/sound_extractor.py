"""What all extractors of sound share: a clip's waveform at the network's sample rate, and loading a network's weights.

Every extractor resamples with :func:`resample`, so that figures of different networks have heard the same sound.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.extractors.extractor import Extractor, Reads

# A windowed sinc with the settings that librosa's resampler calls "kaiser_best".
ZERO_CROSSINGS = 64  # of the sinc on each side
ROLLOFF = 0.9475937167399596  # the cut-off frequency, as a share of half the lower sample rate
KAISER_BETA = 14.769656459379492
MAX_FILTER_TAPS = 2**26  # over all phases: 256 MB; reached only by rates without a large common divisor
REASON_LENGTH = 300  # characters of torch's message that are repeated in an error


def resample(waveform: Tensor, old_rate: int, new_rate: int) -> Tensor:
    """Return ``waveform`` (N,) at ``new_rate`` Hz, (⌈N · new_rate / old_rate⌉,) float32.

    The filter is a sinc of 64 zero crossings on each side in a Kaiser window (β = 14.77), whose cut-off frequency is
    0.948 of half the lower rate. It has no delay: output sample k lies at k / ``new_rate``.

    Raises:
        UserError: the rates have so small a common divisor that the filter would not fit in memory.
    """
    divisor = math.gcd(old_rate, new_rate)
    old, new = old_rate // divisor, new_rate // divisor
    taps = new * (old + 2 * math.ceil(ZERO_CROSSINGS * old / (ROLLOFF * min(old, new))))
    if old != new and taps > MAX_FILTER_TAPS:
        raise UserError(f"a sample rate of {old_rate} Hz cannot be resampled to {new_rate} Hz; convert the sound first")
    resampled: Tensor = torchaudio.functional.resample(
        waveform,
        old_rate,
        new_rate,
        lowpass_filter_width=ZERO_CROSSINGS,
        rolloff=ROLLOFF,
        resampling_method="sinc_interp_kaiser",
        beta=KAISER_BETA,
    )
    return resampled


class SoundExtractor(Extractor):
    """An extractor whose network hears a clip's waveform; by default, the waveform is the network's input.

    Attributes:
        sample_rate: Hz at which the network hears.
        min_samples: the fewest samples of which it makes a vector.

    Args:
        path: the pretrained weights; None only for a package that brings its own.
        device: where the network runs.
        seconds: to this duration each waveform is cut, or padded with zeros at its end; None leaves it as it is.

    Raises:
        UserError: no weights are given, or they cannot be loaded.
    """

    reads: Reads = "waveform"
    sample_rate: int
    min_samples: int
    has_own_weights: ClassVar[bool] = False

    def __init__(self, path: Path | None, device: torch.device, *, seconds: float | None = None) -> None:
        super().__init__(path, device)
        if path is None and not self.has_own_weights:
            raise UserError(f"{self.name}: needs pretrained weights; give their path as {self.weights}=PATH")
        if seconds is not None and not 0 < seconds < math.inf:
            raise UserError(f"{self.name}: seconds is {seconds}; must be a number above 0")
        self.seconds = seconds

    @property
    def weights_path(self) -> Path:
        """The pretrained weights that were given."""
        if self.path is None:
            raise ValueError(f"{self.name} has no weights file")
        return self.path

    def prepare(self, clip: ClipRecord) -> Tensor:
        """Return the waveform of ``clip`` (N,) at :attr:`sample_rate`, in [-1, 1] but for the filter's overshoot.

        Raises:
            UserError: the clip has no sound, or too little of it, or a sample rate that cannot be resampled.
        """
        if not len(clip.clip.waveform):
            raise UserError(f"{clip.name}: has no sound, which {self.name} needs")
        waveform = torch.from_numpy(np.array(clip.clip.waveform, dtype=np.float32))
        try:
            waveform = resample(waveform, clip.sample_rate, self.sample_rate)
        except UserError as error:
            raise UserError(f"{clip.name}: {error}") from None
        if self.seconds is not None:
            samples = round(self.seconds * self.sample_rate)
            waveform = F.pad(waveform[:samples], (0, max(0, samples - len(waveform))))
        if len(waveform) < self.min_samples:
            duration, least = len(waveform) / self.sample_rate, self.min_samples / self.sample_rate
            raise UserError(f"{clip.name}: has {duration:.3f} s of sound; {self.name} needs at least {least:.3f} s")
        return waveform

    def fingerprint(self) -> str:
        """Return the sha256, in hex, of the weights file."""
        return sha256(self.weights_path)


def load_state(network: nn.Module, state: Mapping[str, Tensor], path: Path, title: str) -> None:
    """Give ``network``, which may be on the meta device, the tensors of ``state``; freeze it in evaluation mode.

    Raises:
        UserError: a tensor is missing, has another shape, or is not the network's; ``title`` names the network.
    """
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:REASON_LENGTH]
        raise UserError(f"{path}: its weights are not those of {title}: {reason}") from None
    network.float().eval().requires_grad_(False)
