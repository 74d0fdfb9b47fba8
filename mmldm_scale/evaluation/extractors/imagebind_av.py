"""ImageBind-AV: the cosine of ImageBind's vectors of a clip's frames and of its sound, as one number a clip."""

import math
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.extractors.extractor import Extractor, Reads
from mmldm_scale.evaluation.extractors.imagebind import (
    MEL_BINS,
    MEL_FRAMES,
    SIZE,
    ImageBindAudio,
    ImageBindVideo,
)

VIEW = (3, 2, SIZE, SIZE)  # shape of a view of frames
SPECTROGRAM = (1, MEL_BINS, MEL_FRAMES)  # shape of a view of sound


class ImageBindAV(Extractor):
    """The cosine, -1 to 1, of a clip's two vectors, each the mean of its views' vectors.

    Args:
        path: the state dict of ImageBind-huge.
        device: where the networks run.
        video_spans: number of spans of 2 s of the frames.
        crops: of each span, 1 or 3.
        audio_spans: number of spans of 2 s of the sound.
    """

    name = "imagebind_av"
    title = "ImageBind-AV"
    reads: Reads = "both"
    dimension = 1
    weights = "imagebind"

    def __init__(
        self,
        path: Path | None,
        device: torch.device,
        *,
        video_spans: int = 5,
        crops: Literal[1, 3] = 3,
        audio_spans: int = 3,
    ) -> None:
        super().__init__(path, device)
        self.video = ImageBindVideo(path, device, spans=video_spans, crops=crops)
        self.audio = ImageBindAudio(path, device, spans=audio_spans)

    def prepare(self, clip: ClipRecord) -> Tensor:
        """Return the views of the frames, then those of the sound, as one vector."""
        return torch.cat([self.video.prepare(clip).flatten(), self.audio.prepare(clip).flatten()])

    def features(self, inputs: Tensor) -> Tensor:
        """Return the cosines (B, 1) of ``inputs`` (B, N), as :meth:`prepare` makes them."""
        frames = self.video.spans * self.video.crops * math.prod(VIEW)
        vision = self.video.features(inputs[:, :frames].unflatten(1, (-1, *VIEW)))
        sound = self.audio.features(inputs[:, frames:].unflatten(1, (-1, *SPECTROGRAM)))
        return F.cosine_similarity(vision, sound)[:, None]

    def fingerprint(self) -> str:
        return self.video.fingerprint()
