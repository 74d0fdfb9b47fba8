"""I3D (Carreira and Zisserman 2017, arXiv 1705.07750), trained on Kinetics-400: the network of FVD and KVD.

It reads its weights in the two formats in which they are published:

- a state dict with the names of piergiaj's port, such as ``i3d_pretrained_400.pt``, which MM-Diffusion's evaluation
  uses, and ``rgb_imagenet.pt``. No code in the file is run.
- a TorchScript archive, ``i3d_torchscript.pt`` of StyleGAN-V. It holds the network's code, too. That code runs in
  TorchScript's interpreter, not in Python, but it is code: give only an archive that you trust.

The figures of MM-Diffusion need ``frames=16, frame_rate=10, reduce_to=64, truncate=True`` and no antialiasing.
"""

import logging
import zipfile
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.safe_tensors import read_tensors
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.extractors.extractor import Extractor
from mmldm_scale.evaluation.extractors.frames import letterbox, scale_and_crop, take_frames
from mmldm_scale.evaluation.extractors.inference import reproducible_inference

logger = logging.getLogger(__name__)

SIZE = 224  # pixels: height and width of the network's input
CLASSES = 400  # of Kinetics-400
POOLED = 1024  # channels of the last layer before the classifier
LEAST_FRAMES = 9  # the last pooling is over 2 positions in time, each of 8 frames
REASON_LENGTH = 300  # characters of torch's message that are repeated in an error
# Channels of each Inception module, in this order: branch 0; branch 1, 1×1×1 and 3×3×3; branch 2, likewise; branch 3.
MODULES = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# Kernel and stride (time, height, width) of the pooling before a module.
POOLINGS = {"Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}

Shape = tuple[int, int, int]  # time, height, width


class I3D(Extractor):
    """I3D's logits (400) or pooled features (1,024) of a clip's first frames.

    Args:
        path: the weights, a state dict or a TorchScript archive.
        device: where the network runs.
        output: "logits", as FVD and KVD use them, or "features", the last layer before the classifier, of a state dict.
        frames: number of frames, at least 9. Longer clips are cut, shorter ones are an error.
        frame_rate: frames per second; None for the clip's own.
        reduce_to: pixels of a square that the frames are fitted into first, with black bars; None to leave that out.
        antialias: filter before reducing frames. MM-Diffusion's and StyleGAN-V's code do not.
        truncate: convert pixels to [-1, 1] and back as MM-Diffusion's loader does, which lowers 63 of the 256 levels by
            one because it truncates.
    """

    name = "i3d"
    title = "I3D (Kinetics-400) logits"
    reads = "frames"
    dimension = CLASSES
    classes = CLASSES
    weights = "i3d"

    def __init__(
        self,
        path: Path | None,
        device: torch.device,
        *,
        output: Literal["logits", "features"] = "logits",
        frames: int = 16,
        frame_rate: float | None = None,
        reduce_to: int | None = None,
        antialias: bool = False,
        truncate: bool = False,
    ) -> None:
        super().__init__(path, device)
        if path is None:
            raise UserError("i3d: needs the path of its weights, a state dict or a TorchScript archive")
        if output not in ("logits", "features"):
            raise UserError(f"i3d: output must be 'logits' or 'features', not {output!r}")
        if frames < LEAST_FRAMES:
            raise UserError(f"i3d: frames must be at least {LEAST_FRAMES}, not {frames}")
        self.file, self.output = path, output
        self.frames, self.frame_rate = frames, frame_rate
        self.reduce_to, self.antialias, self.truncate = reduce_to, antialias, truncate
        if output == "features":
            self.title, self.dimension, self.classes = "I3D (Kinetics-400) features", POOLED, 0
        self.network: InceptionI3D | torch.jit.ScriptModule
        self.network = self._load_torchscript(path) if is_torchscript(path) else load_state_dict(path).to(device)

    def _load_torchscript(self, path: Path) -> torch.jit.ScriptModule:
        if self.output == "features":
            raise UserError(f"{path}: is a TorchScript archive, which gives logits only; use a state dict for features")
        logger.warning("%s is a TorchScript archive: the code in it runs in TorchScript's interpreter", path)
        try:
            module: torch.jit.ScriptModule = torch.jit.load(path, map_location=self.device).eval()
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as a TorchScript archive: {_one_line(error)}") from None
        return module

    def prepare(self, clip: ClipRecord) -> Tensor:
        """Return the clip's frames, (3, F, 224, 224) in [-1, 1]."""
        frames = take_frames(clip, self.frames, self.frame_rate, self.title)
        if self.reduce_to is not None:
            frames = letterbox(frames, self.reduce_to, self.antialias)
        if self.truncate:
            frames = truncated(frames)
        scaled = scale_and_crop(frames.float() / 255, SIZE, self.antialias)  # (F, 3, 224, 224)
        return (scaled - 0.5).mul(2).transpose(0, 1).contiguous()

    def features(self, inputs: Tensor) -> Tensor:
        """Return the logits or features of (B, 3, F, 224, 224)."""
        with reproducible_inference():
            inputs = inputs.to(self.device)
            if isinstance(self.network, InceptionI3D):
                pooled = self.network(inputs)  # (B, 1024, T, 1, 1)
                result = self.network.logits(pooled) if self.output == "logits" else pooled
                return result.mean(dim=(2, 3, 4)).float().cpu()
            return self._from_torchscript(inputs).float().cpu()

    def _from_torchscript(self, inputs: Tensor) -> Tensor:
        """Return what StyleGAN-V's archive calls features: the values before its softmax."""
        try:
            logits: Tensor = self.network(inputs, rescale=False, resize=False, return_features=True)
        except RuntimeError as error:
            raise UserError(f"{self.path}: is not StyleGAN-V's I3D: {_one_line(error)}") from None
        if logits.shape != (len(inputs), CLASSES):
            shape = tuple(logits.shape)
            raise UserError(f"{self.path}: is not StyleGAN-V's I3D: it returns {shape}, not {(len(inputs), CLASSES)}")
        return logits

    def fingerprint(self) -> str:
        return sha256(self.file)


def is_torchscript(path: Path) -> bool:
    """Return whether ``path`` is a TorchScript archive: a zip file whose only folder has a folder "code"."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.partition("/")[2].startswith("code/") for name in archive.namelist())


def load_state_dict(path: Path) -> "InceptionI3D":
    """Return the network with the weights of the state dict in ``path``, on the CPU, in evaluation mode.

    Raises:
        UserError: the file cannot be read, or holds another network.
    """
    state = read_tensors(path)
    with torch.device("meta"):  # elsewhere torch would draw random weights, which moves the global generator
        network = InceptionI3D()
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = _one_line(error)
        raise UserError(f"{path}: its weights are not those of I3D with {CLASSES} classes: {reason}") from None
    return network.float().eval().requires_grad_(False)


def truncated(frames: Tensor) -> Tensor:
    """Return uint8 ``frames`` after MM-Diffusion's way to [-1, 1] and back."""
    return (frames.float().div(127.5).sub(1).add(1) * 127.5).clamp(0, 255).to(torch.uint8)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:REASON_LENGTH]


class InceptionI3D(nn.Module):
    """The layers of I3D under the names of the published state dicts.

    ``forward`` turns (B, 3, T, 224, 224) in [-1, 1] into (B, 1024, T′, 1, 1), T′ = ⌈T/8⌉ - 1; ``logits`` is the
    classifier.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, (7, 7, 7), (2, 2, 2))
        self.Conv3d_2b_1x1 = Unit(64, 64, (1, 1, 1))
        self.Conv3d_2c_3x3 = Unit(64, 192, (3, 3, 3))
        channels = 192
        for name, widths in MODULES.items():
            self.add_module(name, Inception(channels, widths))
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.logits = Classifier(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = same_max_pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        x = same_max_pool(x, (1, 3, 3), (1, 2, 2))
        for name in MODULES:
            if name in POOLINGS:
                x = same_max_pool(x, *POOLINGS[name])
            x = self.get_submodule(name)(x)
        return F.avg_pool3d(x, (2, 7, 7), stride=1)


class Unit(nn.Module):
    """A convolution with TensorFlow's "SAME" padding, batch normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Shape, stride: Shape = (1, 1, 1)) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv3d(same_pad(x, self.kernel, self.stride))))


class Inception(nn.Module):
    """Four branches, whose channels are joined: 1×1×1; 1×1×1 and 3×3×3, twice; maximum over 3×3×3 and 1×1×1."""

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        self.b0 = Unit(inputs, widths[0], (1, 1, 1))
        self.b1a = Unit(inputs, widths[1], (1, 1, 1))
        self.b1b = Unit(widths[1], widths[2], (3, 3, 3))
        self.b2a = Unit(inputs, widths[3], (1, 1, 1))
        self.b2b = Unit(widths[3], widths[4], (3, 3, 3))
        self.b3b = Unit(inputs, widths[5], (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        pooled = same_max_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class Classifier(nn.Module):
    """The last layer, a 1×1×1 convolution."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, CLASSES, (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.conv3d(x)
        return logits


def same_pad(x: Tensor, kernel: Shape, stride: Shape) -> Tensor:
    """Return ``x`` (B, C, T, H, W) with the zeros that TensorFlow's "SAME" adds; of an odd number more at the end."""
    pads: list[int] = []
    for length, size, step in zip(x.shape[2:], kernel, stride, strict=True):
        total = max((-(-length // step) - 1) * step + size - length, 0)
        pads = [total // 2, total - total // 2, *pads]  # F.pad begins with the last dimension
    return F.pad(x, pads)


def same_max_pool(x: Tensor, kernel: Shape, stride: Shape) -> Tensor:
    """Return the maxima of ``x``, which is not negative, so that padding with zeros changes none of them."""
    return F.max_pool3d(same_pad(x, kernel, stride), kernel, stride)
