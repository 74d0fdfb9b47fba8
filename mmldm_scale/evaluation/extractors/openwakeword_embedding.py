"""The speech embedding in openWakeWord's package: a small pretrained network for tests, whose weights come with it.

Source: Lin et al. 2020, "Training keyword spotters with limited and synthesized speech data" (arXiv 2002.01322). The
package openwakeword 0.4.0 (Apache-2.0, the extra ``evaluation-test``) has the network and its log-mel frontend as ONNX
files, which onnxruntime runs on the CPU. The package itself is not imported.

What the network hears: sound at 16 kHz, multiplied by 32767; 32 log-mel bands every 160 samples, divided by 10 and
increased by 2, as the package does; windows of 76 frames, one every 8, of which each gives 96 numbers. A clip's vector
is their mean over the windows. (Their standard deviation beside it did not order corruptions better.)

Distances with it are named after it. They order corruptions of a sound, but are no published figure's.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.extractors.packaged_weights import packaged_file
from mmldm_scale.evaluation.extractors.sound_extractor import SoundExtractor

PACKAGE = "openwakeword"
FRONTEND, NETWORK = "resources/models/melspectrogram.onnx", "resources/models/embedding_model.onnx"
FULL_SCALE = 32767.0
WINDOW, STEP, HOP = 76, 8, 160  # frames, frames, samples


class OpenWakeWord(SoundExtractor):
    """openWakeWord's speech embedding; the module's text says what it computes.

    Args:
        path: None; the weights are in the package.
        device: not used; the network runs on the CPU.
        seconds: to this duration each waveform is cut, or padded with zeros; None leaves it as it is.

    Raises:
        UserError: the package, with its weights, or onnxruntime is not installed.
    """

    name = "openwakeword"
    title = "openWakeWord speech embedding"
    dimension = 96
    weights = ""
    sample_rate = 16_000
    min_samples = (WINDOW + 3) * HOP  # the frontend's windows take up three more hops
    has_own_weights = True

    def __init__(self, path: Path | None, device: torch.device, *, seconds: float | None = None) -> None:
        super().__init__(path, device, seconds=seconds)
        self.files = [packaged_file(PACKAGE, file, PACKAGE) for file in (FRONTEND, NETWORK)]
        self.frontend, self.network = (_session(file) for file in self.files)

    def prepare(self, clip: ClipRecord) -> Tensor:
        """Return the windows of log-mel frames of ``clip``, (W, 76, 32)."""
        waveform = super().prepare(clip).clamp(-1, 1).numpy() * FULL_SCALE
        (levels,) = self.frontend.run(None, {"input": np.rint(waveform)[None]})  # (1, 1, T, 32)
        frames = torch.from_numpy(levels).reshape(-1, levels.shape[-1]) / 10 + 2
        return frames.unfold(0, WINDOW, STEP).transpose(1, 2).contiguous()

    def features(self, inputs: Tensor) -> Tensor:
        """Return the (B, 96) vectors of the windows ``inputs`` (B, W, 76, 32), each clip by itself."""
        return torch.stack([self._vector(windows) for windows in inputs])

    def fingerprint(self) -> str:
        """Return the sha256, in hex, of the bytes of both ONNX files, the frontend's first."""
        return hashlib.sha256(b"".join(file.read_bytes() for file in self.files)).hexdigest()

    def _vector(self, windows: Tensor) -> Tensor:
        (output,) = self.network.run(None, {"input_1": windows[..., None].numpy()})  # (W, 1, 1, 96)
        return torch.from_numpy(output).reshape(-1, self.dimension).mean(0)


def _session(file: Path) -> Any:
    """Return onnxruntime's session for ``file``, on one thread, so that sums have one order."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"onnxruntime is not installed ({error}); install the extra evaluation-test") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; it warns of machines without a GPU
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
