"""Configuration of ``mmldm train decoder-distil``."""

import math
from dataclasses import dataclass, field
from typing import Literal

from mmldm_scale.common.addresses import path_key
from mmldm_scale.config import DiffusionConfig, LossWeights, ShardTraining
from mmldm_scale.config.check import require

TIMESTEPS = DiffusionConfig().steps  # of the signal decoder's noise schedule, Stable Diffusion's
MOST_STEPS = 10  # that a decoder is distilled for; with more, the teacher itself is as good


@dataclass
class TeacherConfig:
    """How the trained decoder draws the pictures that the distilled one learns to draw in few steps."""

    steps: int = 10  # [DDIM steps] from each timestep to the clean picture; 1: a single prediction
    audio_guidance: float = 1.0  # guidance scale of its audio images, which the distilled decoder learns with them
    video_guidance: float = 1.0  # guidance scale of its frames, likewise

    def __post_init__(self) -> None:
        require(1 <= self.steps <= 100, "teacher.steps", f"{self.steps}: must be in 1..100")
        for key in ("audio_guidance", "video_guidance"):
            value = getattr(self, key)
            require(1 <= value < math.inf, f"teacher.{key}", f"{value:g}: must be at least 1, and finite")


@dataclass
class DecoderDistilTraining(ShardTraining):
    """``mmldm train decoder-distil``: the signal decoder of a trained autoencoder in few steps, on clip shards."""

    trainable: str = "decoder-distil"
    run: str = path_key("runs/decoder_distil")
    autoencoder: str = path_key("???")  # the trained autoencoder: a run, checkpoint or weights folder
    # the numbers of steps that it learns to decode in; each divides the largest, and that the 1,000 timesteps
    steps: list[int] = field(default_factory=lambda: [1, 2, 4])
    # what it learns to draw: the clip's own picture, or the one that the teacher draws from the same noisy one
    target: Literal["clip", "teacher"] = "clip"
    teacher: TeacherConfig = field(default_factory=TeacherConfig)  # how the teacher draws, with target=teacher
    loss_weights: LossWeights = field(default_factory=LossWeights)  # weights of the two modalities' errors
    frames_per_clip: int = 2  # [frames] number of frames of each clip that are decoded in a step
    flip: float = 0.5  # [0..1] share of clips that are mirrored
    validation: list[str] = field(default_factory=list)  # validation sets: folders or URLs of held-out shard sets
    shared_recordings: bool = False  # whether validation sets may have recordings, at other times, that are trained on

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_steps()
        problem = f"{self.init}: must be null; the decoder begins with the weights of autoencoder="
        require(self.init is None, "init", problem)
        for key in ("audio_guidance", "video_guidance"):
            value = getattr(self.teacher, key)
            valid = value == 1 or self.target == "teacher"
            require(valid, f"teacher.{key}", f"{value:g}: needs target=teacher; with target=clip it must be 1")
        require(0 <= self.flip <= 1, "flip", f"{self.flip:g}: must be in 0..1")
        require(self.frames_per_clip >= 1, "frames_per_clip", f"{self.frames_per_clip}: must be at least 1")

    def _check_steps(self) -> None:
        steps = self.steps
        valid = len(set(steps)) == len(steps) > 0 and all(step >= 1 for step in steps)
        require(valid, "steps", f"{steps}: must be one or more different numbers of at least 1")
        most = max(steps)
        valid = TIMESTEPS % most == 0 and all(most % step == 0 for step in steps) and most <= MOST_STEPS
        problem = f"{steps}: each must divide the largest, and that {TIMESTEPS:,}; at most {MOST_STEPS}"
        require(valid, "steps", problem)
