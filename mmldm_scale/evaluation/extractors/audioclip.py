"""AudioCLIP's audio head: ESResNeXt-fbsp, which hears a waveform and gives 1024 numbers, not normalised.

Sources: Guzhov et al. 2021, "ESResNe(X)t-fbsp" (arXiv 2104.11587) and "AudioCLIP" (arXiv 2106.13043). The weights are
the tensors ``audio.…`` of the authors' ``AudioCLIP-Full-Training.pt``, in their names and shapes.

What the network does with a waveform x of N samples, multiplied by ``amplitude``, in float32:

1. It maps the range of 16-bit samples to [-1, 1]: ((x + 32768) · 2) / 65535 − 1, computed in this order.
2. Frames of 1654 samples begin every 561; zeros, half of them before the sound and half after it, fill the last frame.
   Each is multiplied with a Blackman-Harris window (a tensor of the file) and padded with zeros on both sides to 2048.
3. The 1025 complex frequency B-spline wavelets with the learned parameters m, f_b and f_c are applied to each frame:
   √f_b · sinc(f_b t / m)^m · exp(−i f_c t) / √2048, with t from −π to π. The bins 0 to 1022 are kept.
4. The power in decibels, 10 · log₁₀ |·|² (−180 for a power of 0), of the bins 0 to 340, 341 to 681 and 682 to 1022 is
   the three channels of a picture of 341 × T, for a ResNeXt-50 (32 groups of width 4) with attention after each stage.

The authors trained with waveforms at 44.1 kHz whose full scale is 32768. MM-Diffusion's and JavisDiT's evaluation give
the network waveforms in [-1, 1] instead (``amplitude`` 1): then step 1 in float32 leaves about eight bits of a sample,
which is part of their figures, and so it is done here in the same order.

MM-Diffusion's evaluation leaves the network in training mode, so that its batch normalisation uses the mean and
variance of each batch, of 8 clips, and a clip's vector depends on the others. With ``mode`` "training" this extractor
does so too, but changes no running statistics. The network has no dropout, so that nothing is drawn: a vector depends
on the weights and on the clips of its batch alone.
"""

import math
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.safe_tensors import read_tensors
from mmldm_scale.evaluation.extractors.inference import reproducible_inference
from mmldm_scale.evaluation.extractors.sound_extractor import SoundExtractor, load_state

Mode = Literal["evaluation", "training"]

PREFIX = "audio."  # of the audio head's tensors in the authors' file
FRAME, HOP, PADDED_FRAME = 1654, 561, 2048  # samples
BINS = PADDED_FRAME // 2 + 1  # of the time-frequency transform
BANDS = 3  # into which the bins are split, as the channels of a picture
SILENCE = 1e-18  # the power that stands for 0
EPSILON = 1e-8  # which the authors add to t and to m


class AudioClip(SoundExtractor):
    """AudioCLIP's audio head; the module's text says what it computes.

    Args:
        path: ``AudioCLIP-Full-Training.pt`` or the tensors of its audio head as .safetensors.
        device: where the network runs.
        mode: "evaluation", or "training" for batch normalisation over each batch.
        sample_rate: Hz. The network was trained at 44100; another rate changes the meaning of its bins.
        amplitude: what the waveform is multiplied with; 32768 in the authors' training, 1 in MM-Diffusion's evaluation.
        seconds: to this duration each waveform is cut, or padded with zeros; None leaves it as it is.

    Raises:
        UserError: the weights cannot be loaded, or an argument has a value that is not allowed.
    """

    name = "audioclip"
    title = "AudioCLIP audio head (ESResNeXt-fbsp)"
    dimension = 1024
    weights = "audioclip"
    min_samples = FRAME

    def __init__(
        self,
        path: Path | None,
        device: torch.device,
        *,
        mode: Mode = "evaluation",
        sample_rate: int = 44_100,
        amplitude: float = 32768.0,
        seconds: float | None = None,
    ) -> None:
        super().__init__(path, device, seconds=seconds)
        if mode not in get_args(Mode):
            raise UserError(f"{self.name}: mode is {mode!r}; must be one of {', '.join(get_args(Mode))}")
        self.mode, self.sample_rate, self.amplitude = mode, sample_rate, amplitude
        tensors = read_tensors(self.weights_path, PREFIX)
        with torch.device("meta"):  # elsewhere torchvision would draw random weights
            self.network = ESResNeXt()
        state = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
        load_state(self.network, state, self.weights_path, "AudioCLIP's audio head")
        if mode == "training":
            use_batch_statistics(self.network)
        self.network.to(device)

    @reproducible_inference()
    def features(self, inputs: Tensor) -> Tensor:
        """Return the (B, 1024) vectors of the waveforms ``inputs`` (B, N).

        Raises:
            UserError: in training mode, if B is 1.
        """
        if self.mode == "training" and len(inputs) < 2:
            raise UserError(
                f"{self.name}: mode=training needs batches of at least 2 clips, but the last one has 1; "
                "choose a number of clips that fills the batches"
            )
        output: Tensor = self.network(inputs.to(self.device) * self.amplitude)
        return output.float().cpu()


def use_batch_statistics(network: nn.Module) -> None:
    """Make the batch normalisation of ``network`` use each batch's mean and variance, and keep none of them."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False  # then it neither reads nor changes its buffers


class ESResNeXt(ResNet):
    """The network: torchvision's ResNeXt-50 with the wavelet transform before it and attention after each stage.

    Its parameters have the authors' names. Input: waveforms (B, N) in 16-bit scale. Output: (B, 1024).
    """

    window: Tensor

    def __init__(self) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3], num_classes=1024, groups=32, width_per_group=4)
        self.fbsp = Wavelets(BINS)
        self.register_buffer("window", torch.empty(FRAME))
        self.att1 = Attention(64, 256, (3, 1))
        self.att2 = Attention(256, 512, (1, 5))
        self.att3 = Attention(512, 1024, (3, 1))
        self.att4 = Attention(1024, 2048, (1, 5))
        self.att5 = Attention(2048, 2048, (3, 5))

    def forward(self, x: Tensor) -> Tensor:
        """Return the (B, 1024) vectors of waveforms (B, N) in 16-bit scale."""
        x = self.decibels(x)  # (B, 3, 341, T)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        stages = (self.layer1, self.layer2, self.layer3, self.layer4, self.avgpool)
        attentions = (self.att1, self.att2, self.att3, self.att4, self.att5)
        for stage, attention in zip(stages, attentions, strict=True):
            y = stage(x)
            x = y * attention(x, y.shape[-2:])
        output: Tensor = self.fc(x.flatten(1))
        return output

    def decibels(self, x: Tensor) -> Tensor:
        """Return the time-frequency powers of waveforms (B, N) in 16-bit scale, (B, 3, 341, T) in dB."""
        x = (x + 32768.0) * 2.0 / 65535.0 - 1.0  # in the authors' order: it decides what float32 rounds away
        spectrum = self.fbsp(self.frames(x)).transpose(1, 2)  # (B, BINS, T) complex
        kept = spectrum[:, : BINS // BANDS * BANDS].unflatten(1, (BANDS, -1))
        power = kept.real**2 + kept.imag**2
        return 10 * torch.where(power > 0, power, SILENCE).log10()

    def frames(self, x: Tensor) -> Tensor:
        """Return the windowed frames of waveforms (B, N), (B, T, 2048)."""
        count = 1 + max(0, math.ceil((x.shape[-1] - FRAME) / HOP))
        missing = (count - 1) * HOP + FRAME - x.shape[-1]
        x = F.pad(x, (missing // 2, missing - missing // 2))
        around = PADDED_FRAME - FRAME
        return F.pad(x.unfold(-1, FRAME, HOP) * self.window, (around // 2, around - around // 2))


class Wavelets(nn.Module):
    """A bank of complex frequency B-spline wavelets with learned order ``m``, bandwidth ``fb`` and frequency ``fc``."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.empty(count))
        self.fb = nn.Parameter(torch.empty(count))
        self.fc = nn.Parameter(torch.empty(count))
        self.bias = nn.Parameter(torch.empty(0))  # the transform has none, but the authors' file has its name

    def forward(self, frames: Tensor) -> Tensor:
        """Return the coefficients of ``frames`` (B, T, n), (B, T, count) complex."""
        kernel = self.kernel(frames.shape[-1])
        return torch.complex(F.linear(frames, kernel.real), F.linear(frames, kernel.imag))

    def kernel(self, samples: int) -> Tensor:
        """Return the wavelets sampled at ``samples`` times, (count, samples) complex."""
        t = math.pi * torch.linspace(-1, 1, samples, device=self.m.device) + EPSILON  # (samples,)
        m, fb, fc = self.m[:, None], self.fb[:, None], self.fc[:, None]
        phase = fb * t / (m + EPSILON)
        sinc = torch.where(phase == 0, 1.0, phase.sin() / phase)
        # The power of a negative number is complex if m is not whole.
        envelope = torch.polar(sinc.abs() ** m, m * torch.where(sinc < 0, math.pi, 0.0))
        wave = torch.polar(torch.ones_like(phase), -fc * t)
        return fb.sqrt() * envelope * wave / math.sqrt(samples)


class Attention(nn.Module):
    """Attention over channels and one direction or both of a stage's input: factors in [0, 1] for its output."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv_depth = nn.Conv2d(inputs, inputs, kernel, padding=padding, groups=inputs)
        self.conv_point = nn.Conv2d(inputs, outputs, 1)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """Return the factors (B, outputs, *size) for a stage with the input ``x`` (B, inputs, H, W)."""
        x = F.adaptive_max_pool2d(x, list(size))
        return torch.sigmoid(self.bn(self.conv_point(self.conv_depth(x))))
