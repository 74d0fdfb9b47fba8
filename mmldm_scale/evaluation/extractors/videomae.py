"""VideoMAE (Tong et al. 2022, arXiv 2203.12602), a vision transformer of video, through transformers.

The weights are a folder as transformers publishes it: ``config.json``, ``preprocessor_config.json`` and
``model.safetensors``. Nothing is downloaded, and no pickle is read.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEImageProcessor, VideoMAEModel

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.extractors.extractor import Extractor
from mmldm_scale.evaluation.extractors.frames import take_frames
from mmldm_scale.evaluation.extractors.inference import reproducible_inference

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
REASON_LENGTH = 300  # characters of transformers' message that are repeated in an error


class VideoMAE(Extractor):
    """The mean of VideoMAE's tokens, normalised if the model is a classifier, or the logits of a classifier.

    Args:
        path: the model's folder.
        device: where the network runs.
        output: "features", or "logits" of a model that was fine-tuned to classify.
        frame_rate: frames per second at which the model's number of frames is taken; None for the clip's own. VideoMAE
            was trained with 16 frames at 7.5 frames per second, every fourth of 30.
    """

    name = "videomae"
    title = "VideoMAE features"
    reads = "frames"
    weights = "videomae"

    def __init__(
        self,
        path: Path | None,
        device: torch.device,
        *,
        output: Literal["features", "logits"] = "features",
        frame_rate: float | None = None,
    ) -> None:
        super().__init__(path, device)
        if path is None:
            raise UserError("videomae: needs the path of its weights, a folder as transformers publishes it")
        if output not in ("features", "logits"):
            raise UserError(f"videomae: output must be 'features' or 'logits', not {output!r}")
        self.folder, self.output, self.frame_rate = path, output, frame_rate
        for file in (CONFIG, PREPROCESSOR, WEIGHTS):
            if not (path / file).is_file():
                raise UserError(f"{path}: has no {file}; must be a folder of VideoMAE as transformers publishes it")
        self.config = _from_folder(VideoMAEConfig, path)
        self.processor = _from_folder(VideoMAEImageProcessor, path)
        self.classifies = "VideoMAEForVideoClassification" in (self.config.architectures or ())
        if output == "logits" and not self.classifies:
            raise UserError(f"{path}: is no classifier, so it has no logits; use output 'features'")
        self.model = self._load().to(device)
        self.dimension = self.config.num_labels if output == "logits" else self.config.hidden_size
        self.classes = self.config.num_labels if output == "logits" else 0
        self.title = f"VideoMAE {output}"

    def _load(self) -> Any:
        kind = VideoMAEForVideoClassification if self.classifies else VideoMAEModel
        options = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
        model, loading = _from_folder(kind, self.folder, **options)
        missing = sorted(str(name) for name in loading["missing_keys"])
        if missing:  # transformers would leave them random
            names = f"{len(missing)} weights are missing, such as {missing[0]}"
            raise UserError(f"{self.folder / WEIGHTS}: does not match its {CONFIG}: {names}")
        return model.eval().requires_grad_(False)

    def prepare(self, clip: ClipRecord) -> Tensor:
        """Return the clip's frames as the folder's preprocessor makes them, (F, 3, S, S)."""
        frames = take_frames(clip, self.config.num_frames, self.frame_rate, self.title)
        pixels: Tensor = self.processor(list(frames), return_tensors="pt")["pixel_values"]
        return pixels[0]

    def features(self, inputs: Tensor) -> Tensor:
        """Return the features or logits of (B, F, 3, S, S)."""
        with reproducible_inference():
            inputs = inputs.to(self.device)
            if self.output == "logits":
                result = self.model(pixel_values=inputs).logits
            elif self.classifies:
                tokens = self.model.videomae(pixel_values=inputs).last_hidden_state  # (B, tokens, D)
                result = self._pooled(tokens)
            else:
                result = self.model(pixel_values=inputs).last_hidden_state.mean(dim=1)
            return result.float().cpu()

    def _pooled(self, tokens: Tensor) -> Tensor:
        """Return what the classifier's last layer reads, (B, D)."""
        norm = self.model.fc_norm
        pooled: Tensor = tokens[:, 0] if norm is None else norm(tokens.mean(dim=1))
        return pooled

    def fingerprint(self) -> str:
        return sha256(self.folder / WEIGHTS)


def _from_folder(kind: Any, folder: Path, **options: Any) -> Any:
    """Return what ``kind``, a class of transformers, reads from ``folder``; raise UserError if it cannot."""
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:REASON_LENGTH]
        raise UserError(f"{folder}: cannot be read as a folder of VideoMAE: {reason}") from None
