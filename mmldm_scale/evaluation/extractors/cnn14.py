"""PANNs' CNN14, a classifier of AudioSet's 527 classes: its logits, or the 2048 numbers before them.

Source: Kong et al. 2020, "PANNs: large-scale pretrained audio neural networks" (arXiv 1912.10211). The weights are the
authors' ``Cnn14_mAP=0.431.pth`` (32 kHz) or ``Cnn14_16k_mAP=0.438.pth`` (16 kHz), in their names and shapes.

What the network hears: a power spectrogram of frames of 1024 samples every 320 (512 every 160 at 16 kHz), centred, with
the sound reflected at its ends; 64 mel bands; 10 · log₁₀ of at least 10⁻¹⁰. The Fourier transform with its Hann window
and the mel filters are tensors of the file, and these are used. Six blocks of two convolutions follow, then the mean
over frequency, and the sum of maximum and mean over time.

The 2048 numbers are those after the layer ``fc1`` and its ReLU. The logits are those of ``fc_audioset`` before the
sigmoid; classes are in the order of AudioSet's ``class_labels_indices.csv``.
"""

from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.safe_tensors import read_tensors
from mmldm_scale.evaluation.extractors.inference import reproducible_inference
from mmldm_scale.evaluation.extractors.sound_extractor import SoundExtractor, load_state

Output = Literal["embedding", "logits"]

HOPS = {32_000: 320, 16_000: 160}  # samples, by sample rate
WINDOWS = {32_000: 1024, 16_000: 512}
BANDS, CLASSES, EMBEDDING = 64, 527, 2048
CHANNELS = (64, 128, 256, 512, 1024, 2048)  # of the blocks
MIN_FRAMES = 32  # which the five poolings reduce to one
MIN_POWER = 1e-10


class Cnn14(SoundExtractor):
    """PANNs' CNN14; the module's text says what it computes.

    Args:
        path: ``Cnn14_mAP=0.431.pth`` or ``Cnn14_16k_mAP=0.438.pth``.
        device: where the network runs.
        output: "embedding" (2048 numbers) or "logits" (527).
        sample_rate: Hz at which the weights were trained: 32000 or 16000.
        seconds: to this duration each waveform is cut, or padded with zeros; None leaves it as it is.

    Raises:
        UserError: the weights cannot be loaded, are those of another sample rate, or an argument is not allowed.
    """

    name = "cnn14"
    title = "PANNs CNN14"
    dimension = EMBEDDING
    classes = CLASSES
    weights = "cnn14"

    def __init__(
        self,
        path: Path | None,
        device: torch.device,
        *,
        output: Output = "embedding",
        sample_rate: int = 32_000,
        seconds: float | None = None,
    ) -> None:
        super().__init__(path, device, seconds=seconds)
        if output not in get_args(Output):
            raise UserError(f"{self.name}: output is {output!r}; must be one of {', '.join(get_args(Output))}")
        if sample_rate not in HOPS:
            raise UserError(f"{self.name}: sample_rate is {sample_rate}; must be one of {', '.join(map(str, HOPS))}")
        self.output, self.sample_rate = output, sample_rate
        self.dimension = CLASSES if output == "logits" else EMBEDDING
        self.min_samples = (MIN_FRAMES - 1) * HOPS[sample_rate]
        with torch.device("meta"):
            self.network = Cnn14Network(WINDOWS[sample_rate], HOPS[sample_rate])
        title = f"PANNs' CNN14 for {sample_rate} Hz"
        load_state(self.network, read_tensors(self.weights_path), self.weights_path, title)
        self.network.to(device)

    @reproducible_inference()
    def features(self, inputs: Tensor) -> Tensor:
        """Return the vectors of the waveforms ``inputs`` (B, N): (B, 2048), or (B, 527) logits."""
        embedding = self.network.embedding(inputs.to(self.device))
        output: Tensor = self.network.fc_audioset(embedding) if self.output == "logits" else embedding
        return output.float().cpu()


class Cnn14Network(nn.Module):
    """The network. Its parameters have the authors' names."""

    def __init__(self, window: int, hop: int) -> None:
        super().__init__()
        self.spectrogram_extractor = nn.ModuleDict({"stft": Fourier(window, hop)})
        self.logmel_extractor = nn.ParameterDict({"melW": torch.empty(window // 2 + 1, BANDS)})
        self.bn0 = nn.BatchNorm2d(BANDS)
        self.blocks = len(CHANNELS)
        for i, (inputs, outputs) in enumerate(zip((1, *CHANNELS), CHANNELS, strict=False), 1):
            self.add_module(f"conv_block{i}", Block(inputs, outputs))
        self.fc1 = nn.Linear(CHANNELS[-1], EMBEDDING)
        self.fc_audioset = nn.Linear(EMBEDDING, CLASSES)

    def embedding(self, waveforms: Tensor) -> Tensor:
        """Return the (B, 2048) numbers before the classifier, of ``waveforms`` (B, N)."""
        x = self.bn0(self.log_mel(waveforms)[..., None])[..., 0]  # (B, 64, T): normalised for each band
        x = x.transpose(1, 2)[:, None]  # (B, 1, T, 64)
        for i in range(1, self.blocks + 1):
            x = self.get_submodule(f"conv_block{i}")(x)
            if i < self.blocks:
                x = F.avg_pool2d(x, 2)
        x = x.mean(3)  # (B, 2048, T / 32)
        return F.relu(self.fc1(x.amax(2) + x.mean(2)))

    def log_mel(self, waveforms: Tensor) -> Tensor:
        """Return the mel levels of ``waveforms`` (B, N), (B, 64, T) in dB."""
        power = self.spectrogram_extractor["stft"](waveforms)  # (B, F, T)
        mel = self.logmel_extractor["melW"].T @ power
        return 10 * mel.clamp(min=MIN_POWER).log10()


class Fourier(nn.Module):
    """The Fourier transform as two convolutions, whose weights hold the window."""

    def __init__(self, window: int, hop: int) -> None:
        super().__init__()
        self.padding = window // 2
        self.conv_real = nn.Conv1d(1, window // 2 + 1, window, stride=hop, bias=False)
        self.conv_imag = nn.Conv1d(1, window // 2 + 1, window, stride=hop, bias=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Return the power spectrograms of ``waveforms`` (B, N), (B, F, T)."""
        x = F.pad(waveforms[:, None], (self.padding, self.padding), mode="reflect")
        power: Tensor = self.conv_real(x) ** 2 + self.conv_imag(x) ** 2
        return power


class Block(nn.Module):
    """Two convolutions, each with batch normalisation and ReLU: (B, inputs, H, W) to (B, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))
