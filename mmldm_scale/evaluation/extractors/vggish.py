"""VGGish: 128 numbers for each 0.96 s of sound, averaged over a clip. The Fréchet audio distance was defined with it.

Sources: Hershey et al. 2017, "CNN architectures for large-scale audio classification" (arXiv 1609.09430); Kilgour et
al. 2019, "Fréchet audio distance" (arXiv 1812.08466). The weights are those of the PyTorch port torchvggish,
``vggish-10086976.pth``, in its names and shapes.

What the network hears: sound at 16 kHz, in frames of 400 samples that begin every 160, without padding; a periodic Hann
window; the magnitudes of a Fourier transform of 512 points; 64 mel bands from 125 to 7500 Hz, triangles on HTK's mel
scale; the natural logarithm of the magnitude + 0.01. 96 frames are a patch. Sound after the last whole patch is not
heard, and a clip must have at least one patch, 15,600 samples.

Published Fréchet audio distances with VGGish count each patch as a vector of its own. Here a clip has one vector, the
mean of its patches, which is the same for clips with a single patch. The port's 8-bit quantisation and PCA after the
network are not applied, as in those figures. Whether the last ReLU is applied differs between programs: see ``relu``.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.safe_tensors import read_tensors
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.extractors.inference import reproducible_inference
from mmldm_scale.evaluation.extractors.sound_extractor import SoundExtractor, load_state

WINDOW, HOP, FFT = 400, 160, 512  # samples
BANDS, LOWEST, HIGHEST = 64, 125.0, 7500.0  # mel bands and their range in Hz
LOG_OFFSET = 0.01
PATCH = 96  # frames
CHANNELS = (64, 128, 256, 256, 512, 512)  # of the convolutions
POOLED = (0, 1, 3, 5)  # convolutions with a pooling after them


class Vggish(SoundExtractor):
    """VGGish; the module's text says what it computes.

    Args:
        path: ``vggish-10086976.pth``.
        device: where the network runs.
        patch_hop: seconds between the beginnings of patches, a multiple of 0.01; 0.96 without overlap.
        relu: whether the ReLU after the last layer is applied.
        seconds: to this duration each waveform is cut, or padded with zeros; None leaves it as it is.

    Raises:
        UserError: the weights cannot be loaded, or an argument has a value that is not allowed.
    """

    name = "vggish"
    title = "VGGish, mean of the patches"
    dimension = 128
    weights = "vggish"
    sample_rate = 16_000
    min_samples = (PATCH - 1) * HOP + WINDOW

    def __init__(
        self,
        path: Path | None,
        device: torch.device,
        *,
        patch_hop: float = 0.96,
        relu: bool = False,
        seconds: float | None = None,
    ) -> None:
        super().__init__(path, device, seconds=seconds)
        self.hop_frames = round(patch_hop * self.sample_rate / HOP)
        if self.hop_frames < 1:
            raise UserError(f"{self.name}: patch_hop is {patch_hop}; must be at least 0.01 s")
        with torch.device("meta"):
            self.network = VggishNetwork(relu)
        load_state(self.network, read_tensors(self.weights_path), self.weights_path, "torchvggish")
        self.network.to(device)

    def prepare(self, clip: ClipRecord) -> Tensor:
        """Return the log-mel patches of ``clip``, (P, 96, 64)."""
        frames = log_mel(super().prepare(clip))  # (T, 64)
        return frames.unfold(0, PATCH, self.hop_frames).transpose(1, 2).contiguous()

    @reproducible_inference()
    def features(self, inputs: Tensor) -> Tensor:
        """Return the (B, 128) vectors of the patches ``inputs`` (B, P, 96, 64)."""
        vectors: Tensor = self.network(inputs.flatten(0, 1)[:, None].to(self.device))  # (B · P, 128)
        return vectors.float().cpu().unflatten(0, inputs.shape[:2]).mean(1)


def log_mel(waveform: Tensor) -> Tensor:
    """Return the log-mel frames of ``waveform`` (N,) at 16 kHz, (T, 64)."""
    window = torch.hann_window(WINDOW, periodic=True, dtype=torch.float64)
    frames = waveform.double().unfold(0, WINDOW, HOP) * window
    magnitudes = torch.fft.rfft(frames, FFT).abs()
    return (magnitudes @ mel_filters() + LOG_OFFSET).log().float()


def mel_filters() -> Tensor:
    """Return the mel filters, (257, 64) float64.

    They are triangles on the mel scale, not, as torchaudio's, over the frequencies in Hz.
    """
    frequencies = torch.linspace(0, Vggish.sample_rate / 2, FFT // 2 + 1, dtype=torch.float64)
    edges = torch.tensor([LOWEST, HIGHEST], dtype=torch.float64)
    bins, (lowest, highest) = _mel(frequencies)[:, None], _mel(edges).tolist()
    corners = torch.linspace(lowest, highest, BANDS + 2, dtype=torch.float64)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    filters = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0)
    filters[0] = 0
    return filters


def _mel(frequency: Tensor) -> Tensor:
    return 1127 * torch.log1p(frequency / 700)


class VggishNetwork(nn.Module):
    """The network. Its parameters have the port's names. Input: patches (B, 1, 96, 64). Output: (B, 128)."""

    def __init__(self, relu: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(zip((1, *CHANNELS), CHANNELS, strict=False)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if i in POOLED else []
        self.features = nn.Sequential(*layers)
        last = [nn.ReLU()] if relu else []
        self.embeddings = nn.Sequential(
            nn.Linear(CHANNELS[-1] * (PATCH // 16) * (BANDS // 16), 4096),
            nn.ReLU(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, Vggish.dimension),
            *last,
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Return the vectors of ``patches``; channels are the last dimension when they become a vector."""
        output: Tensor = self.embeddings(self.features(patches).permute(0, 2, 3, 1).flatten(1))
        return output
